"""A JSON array is read a piece at a time, and gives what the whole of it gives, wherever it is cut."""

import io
import json
import tracemalloc
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.data.sources import json_rows
from growlm.data.sources.json_rows import JsonRows, JsonRowsError
from growlm.data.sources.text_lines import TextLines, TooLongError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9,
)
rows_of_values = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


def read(text, chunk=8, limit=2**30):
    data = io.BytesIO(text.encode("utf-8", "surrogatepass"))
    with mock.patch.object(json_rows, "CHUNK_CHARACTERS", chunk):
        return list(JsonRows(TextLines(data, "", None, limit), {"text"}))


@settings(max_examples=25)
@given(
    rows=rows_of_values,
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 30),
    ascii_only=st.booleans(),
    around=st.tuples(st.text(" \t\n", max_size=20), st.text(" \t\n", max_size=20)),
)
def test_an_array_is_read_as_a_whole_is(rows, chunk, indent, ascii_only, around):
    try:
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(rows, indent=indent)
    found = read(around[0] + text + around[1], chunk)
    assert repr(found) == repr(json.loads(text))  # by text, since NaN differs from itself


@settings(max_examples=10)
@given(rows=rows_of_values, chunk=st.integers(1, 40), cut=st.floats(0, 1, exclude_max=True))
def test_an_array_that_is_cut_off_is_refused(rows, chunk, cut):
    text = json.dumps(rows)
    with pytest.raises(JsonRowsError, match=r"line \d+ is not valid JSON"):
        read(text[: max(1, int(cut * len(text)))], chunk)


def test_the_line_of_an_item_is_where_it_begins():
    rows = JsonRows(
        TextLines(io.BytesIO(b'\n[\n{"a":\n1}, {"a": 2},\n\n{"a": 3}]'), "", None, 99), set()
    )
    assert [(row["a"], rows.line) for row in rows] == [(1, 3), (2, 4), (3, 6)]


def test_an_invalid_item_is_refused_long_before_the_end():
    class Endless(io.RawIOBase):
        sent = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.sent += len(buffer)
            buffer[:] = b" " * len(buffer)
            return len(buffer)

    class Stream(io.RawIOBase):
        def __init__(self):
            self.start = io.BytesIO(b'[{"a": oops, "b": "' + b"x" * 100)
            self.rest = Endless()

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.start.readinto(buffer) or self.rest.readinto(buffer)

    stream = Stream()
    with pytest.raises(JsonRowsError, match="line 1 is not valid JSON: Expecting value"):
        list(JsonRows(TextLines(io.BufferedReader(stream), "", None, 2**30), set()))
    assert stream.rest.sent < 2**18


def test_an_item_beyond_the_limit_is_refused():
    assert len(read(json.dumps([{"text": "x" * 80}] * 9), limit=200)) == 9
    with pytest.raises(TooLongError, match="item in line 1 is longer than the limit of 200"):
        read(json.dumps([{"text": "x" * 900}]), limit=200)


def test_memory_does_not_grow_with_the_array():
    data = json.dumps([{"text": "x" * 1000}] * 3000).encode()
    tracemalloc.start()
    number = sum(1 for _ in JsonRows(TextLines(io.BytesIO(data), "", None, 2**30), set()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == 3000
    assert peak < len(data) / 3
