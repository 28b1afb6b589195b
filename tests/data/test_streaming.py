"""A stream gives the samples of the corpus on disk, from any place on, without reading what lies before a mark."""

import gc
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.data import PackedSamples
from growlm.data import prefetch as chunks
from growlm.runtime.errors import RunError, UserError
from tests.data.made_corpora import (
    ListSource,
    mixed,
    shuffled,
    stream,
    through_json,
    tokenizer,
)

corpora = st.lists(st.text("abc é", max_size=7), min_size=2, max_size=40)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """So that tiny corpora have several."""
    monkeypatch.setattr(chunks, "MIN_CHUNK_DOCUMENTS", 4)


arguments = {
    "parts": st.lists(corpora, min_size=1, max_size=3),
    "window": st.integers(1, 12),
    "every": st.integers(2, 7),
    "length": st.integers(1, 30),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=40)
@given(**arguments, starts=st.lists(st.integers(0, 60), min_size=1, max_size=4))
def test_a_stream_is_the_corpus_on_disk(parts, window, every, length, seed, starts):
    counts = [3 + index for index in range(len(parts))]
    expected = PackedSamples(mixed(parts, counts, window, seed, every), length)
    samples = stream(parts, counts, length, window, seed, every)
    for start in starts:
        for i in range(start, start + 8):
            assert torch.equal(samples[i], expected[i])


@settings(max_examples=40)
@given(**arguments, stop=st.integers(0, 80))
def test_another_process_goes_on_from_a_mark(parts, window, every, length, seed, stop):
    counts = [3 + index for index in range(len(parts))]
    expected = PackedSamples(mixed(parts, counts, window, seed, every), length)
    first = stream(parts, counts, length, window, seed, every)
    for i in range(stop):
        first[i]
    second = stream(parts, counts, length, window, seed, every)
    second.load_state_dict(through_json(first.state_dict(stop)))
    for i in range(stop, stop + 8):
        assert torch.equal(second[i], expected[i])


def numbered(count):
    return [f"document number {i} of many" for i in range(count)]


def test_nothing_before_the_marks_chunk_is_read_or_tokenized():
    documents = numbered(400)
    first = stream([documents], [100], 32, 8, 0, 5)
    for i in range(200):  # 200 * 32 tokens of about 25 a document: into the fourth fifth
        first[i]
    source = ListSource(documents)
    second = stream([source], [100], 32, 8, 0, 5)
    second.load_state_dict(through_json(first.state_dict(200)))
    assert torch.equal(second[200], first[200])
    assert min(source.read_documents) > 250


def test_without_a_mark_it_is_read_from_the_beginning_and_says_so():
    told = []
    samples = stream([numbered(100)], [100], 4, 8, 0, 5, lambda *done: told.append(done))
    expected = PackedSamples(shuffled(numbered(100), 8, 0, 5), 4)
    assert torch.equal(samples[5000], expected[5000])
    assert told == [(n, 5000) for n in (1000, 2000, 3000, 4000, 5000)]


def test_marks_are_of_the_next_sample_only():
    samples = stream([numbered(100)], [100], 4, 8, 0, 5)
    samples[0]
    assert samples.state_dict(1) is not None
    assert samples.state_dict(0) is None
    assert samples.state_dict(2)["sample"] == 2


def test_places_are_forgotten_on_the_way():
    samples = stream([numbered(100)], [100], 4, 1, 0, 5)
    for i in range(20_000):
        samples[i]
    assert len(samples.streams[0]._positions) < 300
    mark = through_json(samples.state_dict(20_000))
    again = stream([numbered(100)], [100], 4, 1, 0, 5)
    again.load_state_dict(mark)
    assert torch.equal(again[20_000], samples[20_000])


def test_a_stream_that_nobody_has_ends_its_thread():
    samples = stream([numbered(100)], [100], 4, 8, 0, 5)
    samples[0]
    assert "read ahead" in {thread.name for thread in threading.enumerate()}
    del samples
    gc.collect()
    deadline = time.monotonic() + 10
    while "read ahead" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_reading_raises_is_raised_where_it_is_read():
    class Broken(ListSource):
        def read(self, place=None):
            yield_from = super().read(place)

            class Reader(type(yield_from)):
                def __next__(self):
                    if self.number == 50:
                        raise UserError("data.path", "x", "line 51 is no JSON")
                    return super().__next__()

            return Reader(self, place or 0)

    samples = stream([Broken(numbered(100))], [100], 32, 8, 0, 5)
    samples[0]
    for _ in range(2):
        with pytest.raises(UserError, match="line 51"):
            read_all(samples, range(1, 1000))


def test_a_source_that_changes_between_epochs_is_an_error():
    source = ListSource(numbered(40))
    samples = stream([source], [100], 8, 8, 0, 5)
    read_all(samples, range(150))
    source.documents = numbered(33)
    with pytest.raises(RunError, match="changed while it was read"):
        read_all(samples, range(150, 2000))


def read_all(samples, numbers):
    for i in numbers:
        samples[i]


def test_a_source_without_text_is_refused():
    samples = stream([[]], [100], 8, 8, 0, 5)
    with pytest.raises(UserError, match="holds no text to train on"):
        samples[0]


def test_a_stream_leaves_global_random_states_alone():
    samples = stream([numbered(100), numbered(9)], [1, 2], 8, 8, 0, 5)
    before = torch.get_rng_state(), random.getstate()
    for i in range(100):
        samples[i]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_who_stops_reading_closes_the_source():
    """At once, not at some garbage collection, which would find the file open."""
    source, closed = ListSource(["a b c"] * 40), []

    class Reader(type(source.read())):
        def close(self):
            closed.append(True)

    source.read = lambda position=None: Reader(source, position or 0)
    reading = chunks.iter_chunks(source, tokenizer, 4, 5, chunks.START_POSITION)
    next(reading)
    assert not closed
    reading.close()
    assert closed
