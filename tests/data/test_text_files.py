"""Which files a path stands for, their documents, and every way in which they cannot be had."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import TextFiles, embedded_documents, find_text_files, generate_story
from growlm.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text files in two levels, under a name full of glob characters."""
    root = tmp_path / "texts [1]*"
    (root / "below").mkdir(parents=True)
    (root / "b.txt").write_text("b one\nb two\n\n\nb three\n")
    (root / "below" / "c.txt").write_text("c one\r\n \r\nc two", newline="")
    (root / "a.txt").write_text("a one\n")
    (root / "empty.txt").write_text("")
    (root / ".hidden.txt").write_text("hidden\n")
    (root / "other.md").write_text("other\n")
    return root


def write(path: Path, documents: list[str], column: str = "text") -> Path:
    """One file of a kind that its name says, with a second column where it has columns."""
    ending = "".join(path.suffixes)
    rows = [{"number": i, column: text} for i, text in enumerate(documents)]
    if ".parquet" in ending:
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return path
    if ".jsonl" in ending or ".ndjson" in ending:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif ".json" in ending:
        text = json.dumps(rows, indent=len(documents) % 3 or None)
    elif ".csv" in ending or ".tsv" in ending:
        plain = path.with_name("plain")
        with plain.open("w", newline="") as file:
            table = csv.DictWriter(
                file, ["number", column], delimiter="\t" if ".tsv" in ending else ","
            )
            table.writeheader()
            table.writerows(rows)
        text = plain.read_bytes().decode()
        plain.unlink()
    else:
        text = "\n\n".join(documents)
    data = text.encode()
    if ending.endswith(".gz"):
        data = gzip.compress(data)
    elif ending.endswith(".bz2"):
        data = bz2.compress(data)
    elif ending.endswith(".xz"):
        data = lzma.compress(data)
    elif ending.endswith(".zst"):
        half = len(data) // 2  # two frames, as of a file that was appended to
        pack = zstandard.ZstdCompressor(write_checksum=True).compress  # as the zstd command does
        data = pack(data[:half]) + pack(data[half:])
    path.write_bytes(data)
    return path


ENDINGS = (
    *(f"{kind}{compression}" for kind in (".txt", ".jsonl", ".csv") for compression in ("", ".gz", ".zst")),
    ".json", ".json.gz", ".ndjson", ".tsv", ".tsv.xz", ".txt.bz2", ".jsonl.xz", ".csv.bz2", ".parquet",
)  # fmt: skip
DOCUMENTS = ["one\nof two lines", "tw\u00f6, with a comma", '"three"', "007", "NA", "x" * 300_000]


def read(path: Path, column: str = "text", sample_by: str = "paragraph") -> list[str]:
    return list(TextFiles(str(path), column, sample_by).read())


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_gives_the_documents_as_they_were_written(ending, tmp_path):
    assert read(write(tmp_path / f"x{ending}", DOCUMENTS)) == DOCUMENTS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=9))
def test_tables_keep_every_character(ending, documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / f"x{ending}"
    found = read(write(path, [*documents, "last"]))
    expected = [text for text in [*documents, "last"] if text and not text.isspace()]
    if ending == ".csv":  # its reader takes no NUL
        expected = [text.replace("\0", "") for text in expected]
        found = [text.replace("\0", "") for text in found]
    assert found == expected


def test_embedded_documents_are_the_stories_in_order():
    assert list(embedded_documents(seed=7, count=3)) == [
        generate_story(7, 0),
        generate_story(7, 1),
        generate_story(7, 2),
    ]


def test_a_folder_gives_its_readable_files_sorted(folder):
    write(folder / "d.jsonl.gz", ["d"])
    write(folder / "below" / "e.parquet", ["e"])
    names = [str(file.path.relative_to(folder)) for file in find_text_files(str(folder))]
    assert names == ["a.txt", "b.txt", "below/c.txt", "below/e.parquet", "d.jsonl.gz"]


def test_a_glob_gives_its_matches_and_a_file_itself(tmp_path):
    for name in ("x1.txt", "x2.text", "y.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "x3").mkdir()

    def find(path):
        return [file.path for file in find_text_files(path)]

    assert find(f"{tmp_path}/x*") == [tmp_path / "x1.txt", tmp_path / "x2.text"]
    assert find(f"{tmp_path}/**/y*") == [tmp_path / "y.txt"]
    assert find(f"{tmp_path}/x2.text") == [tmp_path / "x2.text"]


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_text_files("x.txt") == find_text_files("~/x.txt")
    assert find_text_files("x.txt")[0].path == tmp_path / "x.txt"


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["a one", "b one", "b two", "b three", "c one", "c two"]),
        ("paragraph", ["a one", "b one\nb two", "b three", "c one", "c two"]),
        ("document", ["a one\n", "b one\nb two\n\n\nb three\n", "c one\n \nc two"]),
    ],
)
def test_what_a_document_of_plain_text_is(folder, sample_by, expected):
    assert read(folder, sample_by=sample_by) == expected


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl.zst", ".tsv.xz", ".parquet"])
def test_reading_goes_on_from_any_place(ending, tmp_path):
    for name, first in (("a", 0), ("b", 5), ("c", 10)):
        write(tmp_path / f"{name}{ending}", [f"document {i}" for i in range(first, first + 5)])
    source = TextFiles(str(tmp_path), "text", "paragraph")
    everything = list(source.read())
    assert len(everything) == 15
    for stop in range(16):
        reader = source.read()
        for _ in range(stop):
            next(reader)
        place = json.loads(json.dumps(reader.position()))
        reader.close()
        assert list(source.read(place)) == everything[stop:]


def test_the_share_read_grows_to_one(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl.gz", [os.urandom(900).hex() for i in range(300)])
    reader = TextFiles(str(tmp_path), "text", "paragraph").read()
    shares = [reader.fraction_read for _ in reader]
    assert shares == sorted(shares)
    assert len(set(shares)) > 10
    assert shares[-1] > 0.9


def test_reading_needs_no_network_and_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert len(read(folder, sample_by="line")) == 6
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["", "  ", "missing.txt", "missing/*.txt", "no_text", "blank.txt"])
def test_paths_without_text_are_refused_before_anything_is_read(path, tmp_path, monkeypatch):
    (tmp_path / "no_text").mkdir()
    (tmp_path / "no_text" / "notes.md").write_text("notes")
    (tmp_path / "blank.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        TextFiles(path, "text", "line")
    assert caught.value.key == "data.path"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("text")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "growlm.storage.input_files.os.open", refuse
    )  # the superuser may read whatever its mode says
    with pytest.raises(UserError, match=r"data\.path=.*cannot read .*x\.txt: Permission denied"):
        find_text_files(str(tmp_path))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.txt.gz", cut),
        ("x.txt.gz", flip),
        ("x.jsonl.gz", cut),
        ("x.txt.zst", cut),
        ("x.txt.zst", flip),
        ("x.txt.bz2", cut),
        ("x.txt.bz2", flip),
        ("x.json.xz", cut),
        ("x.json.xz", flip),
        ("x.parquet", cut),
        ("x.parquet", lambda path: path.write_text("no parquet at all")),
        ("x.txt.gz", lambda path: path.write_text("no gzip at all")),
    ],
)
def test_a_damaged_archive_is_named(name, damage, tmp_path):
    path = write(tmp_path / name, [os.urandom(50).hex() for i in range(400)])
    damage(path)
    with pytest.raises(UserError, match=r"data\.path=.*x\..*(cannot be read|is not UTF-8)"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": \n', r"x\.jsonl: line 2 is not valid JSON"),
        ("x.jsonl", '{"text": "a"}\n\n["b"]\n', "line 3 is not a JSON object"),
        ("x.json", '{"text": "a"}\n5', "line 2 is not a JSON object; each line must be one"),
        ("x.json", '{\n  "text": "a"\n}', "line 1 is not valid JSON: .*; a line must hold a whole"),
        ("x.json", '[{"text": "a"},\n5]', "item in line 2 is not a JSON object"),
        ("x.json", '[{"text": "a"},\n{"text": "b"}', "line 2 is not valid JSON: .* the end of the"),
        (
            "x.json",
            '[{"text": "a"}\n{"text": "b"}]',
            "line 2 is not valid JSON: .* followed by '{'",
        ),
        ("x.json", '[{"text": "a"}]\nmore', "line 2 is not valid JSON: text follows the array"),
        (
            "x.json",
            '[{"text": "a"},\n {"text": \'b\'}]',
            "line 2 is not valid JSON: Expecting value",
        ),
        (
            "x.json",
            '[{"text": "a"},\n{"text": "b]',
            "line 2 is not valid JSON: Unterminated string",
        ),
        ("x.json", "[" * 10_000, "line 1 is not valid JSON"),
        ("x.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2 has the key text twice"),
        ("x.csv", "text,text\na,b\n", r"data\.column=text: .*x\.csv has 2 columns of this name"),
        ("x.csv", "id;text\n1;a\n", r"its columns are: id;text\. Try: data\.delimiter=';'"),
        ("x.csv", "id\ttext\n1\ta\n", r"Try: data\.delimiter='tab'"),
        ("x.jsonl", '{"text": 5}\n', r"data\.column=text: .*line 1 holds a int, not text"),
        (
            "x.jsonl",
            '{"a": "x", "b": "y"}\n',
            r"data\.column=text: .*line 1 has no such column; its columns are: a, b",
        ),
        (
            "x.csv",
            "a,b\n1,2\n",
            r"data\.column=text: .*x\.csv has no such column; its columns are: a, b",
        ),
        (
            "x.csv",
            "text,b\n1,2\n3\n",
            r"row that ends in line 3 has 1 fields, but the header has 2",
        ),
        (
            "x.csv",
            'text,b\na,1\n"a\n\nb',
            r"x\.csv: is not valid CSV: unexpected end of data, in the row that begins in line 3",
        ),
        (
            "x.csv",
            'text,b\n"a"b,1\n',
            "is not valid CSV: ',' expected after '\"', .* begins in line 2",
        ),
        ("x.txt", b"good\n\xff\xfe\x00", r"x\.txt: is not UTF-8 text: byte 0xff in line 2"),
        ("x.jsonl", b'{"text": "a"}\n' * 9999 + b'{"text": "caf\xe9"}', "byte 0xe9 in line 10,000"),
        ("x.csv", b"text,b\na,1\ncaf\xe9,2\n", r"x\.csv: is not UTF-8 text: byte 0xe9 in line 3"),
        ("x.txt", "good\n".encode("utf-16"), r"x\.txt: is UTF-16, .*iconv -f UTF-16"),
        ("x.parquet.gz", b"x", "parquet has its own compression"),
        ("x.tar.gz", b"x", "is an archive of files; unpack it"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(name, text, message, tmp_path):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_missing_column_of_parquet_names_those_there_are_before_anything_is_read(tmp_path):
    write(tmp_path / "x.parquet", ["a"], column="story")
    with pytest.raises(UserError, match=r"data\.column=text: .*its columns are: number, story"):
        TextFiles(str(tmp_path), "text", "line")
    assert read(tmp_path / "x.parquet", column="story") == ["a"]


def test_rows_without_a_value_are_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": null}\n{"text": " "}\n{"text": "a"}\n')
    parquet.write_table(pa.table({"text": [None, "b", ""]}), tmp_path / "y.parquet")
    (tmp_path / "z.csv").write_text("text,n\n,1\nc,2\n")
    assert read(tmp_path) == ["a", "b", "c"]


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    (tmp_path / "x.csv").write_text("text\na\n", encoding="utf-8-sig")
    (tmp_path / "x.txt").write_text("b", encoding="utf-8-sig")
    assert read(tmp_path) == ["a", "b"]


def test_an_unknown_unit_is_refused_at_the_call(folder):
    with pytest.raises(UserError, match=r"data\.sample_by=word: must be one of line, paragraph"):
        TextFiles(str(folder), "text", "word")
