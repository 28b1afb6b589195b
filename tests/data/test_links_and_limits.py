"""Folders whose links lead in circles, and small files that decode to large documents."""

import gzip
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from growlm.data import find_text_files
from growlm.data.sources import file_readers
from growlm.data.sources.file_readers import FileDocuments
from growlm.runtime.errors import UserError


def paths(pattern, folder):
    return [str(file.path.relative_to(folder)) for file in find_text_files(str(pattern))]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "y.txt").write_text("y")
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**", "**/*"])
def test_every_file_is_read_once_however_links_lead(folder, pattern):
    expected = paths(folder / pattern if pattern else folder, folder)
    assert expected == ["a/x.txt", "y.txt"]
    for name, target in (("s1", "."), ("s2", "."), ("a/b/up", "../.."), ("z", "a")):
        os.symlink(target, folder / name)
    assert paths(folder / pattern if pattern else folder, folder) == expected


def test_a_linked_folder_elsewhere_is_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "z.txt").write_text("z")
    os.symlink(other, folder / "c")
    assert paths(folder, folder) == ["a/x.txt", "c/z.txt", "y.txt"]


def test_hidden_folders_and_files_are_left_out(folder):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("x")
    (folder / ".x.txt").write_text("x")
    assert paths(folder, folder) == ["a/x.txt", "y.txt"]
    assert paths(folder / "**" / "*.txt", folder) == ["a/x.txt", "y.txt"]


def read(path, sample_by="paragraph"):
    (file,) = find_text_files(str(path))
    return FileDocuments(file, "text", sample_by, "data.path")


LONG = 1000


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(file_readers, "MAX_DOCUMENT_CHARACTERS", LONG)


@pytest.mark.parametrize(
    ("name", "content", "sample_by"),
    [
        ("a.jsonl", '{"text": "%s"}\n' % ("a" * LONG), "line"),
        ("a.txt", "a" * LONG + "a\n", "line"),
        ("a.txt", "a" * 100 + "\n" + ("b" * 99 + "\n") * 10, "paragraph"),
        ("a.txt", "a " * LONG, "document"),
        ("a.csv", "text,other\n" + "a" * LONG + "aaaa,b\n", "line"),
    ],
    ids=["jsonl", "line", "paragraph", "document", "csv"],
)
@pytest.mark.usefixtures("limit")
def test_a_document_beyond_the_limit_is_refused_by_its_place(tmp_path, name, content, sample_by):
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(UserError, match=r"a\.\w+\.gz.*(longer than the limit|larger than field)"):
        list(read(path, sample_by))


@pytest.mark.usefixtures("limit")
def test_documents_up_to_the_limit_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(("b" * 99 + "\n") * 10 + "\n" + ("c" * 499 + "\n") * 2)
    assert [len(text) for text in read(path)] == [999, 999]


def test_a_repeated_entry_of_a_dictionary_is_decoded_one_at_a_time(tmp_path):
    big = "x" * 2**20
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([big]))
    parquet.write_table(pa.table({"text": column}), tmp_path / "b.parquet", compression="zstd")
    assert (tmp_path / "b.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    largest = count = 0
    tracemalloc.start()
    for text in read(tmp_path / "b.parquet"):
        count += len(text) == len(big)
        largest = max(largest, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 500
    assert largest + peak < 150 * len(big)  # all of them at once are 500
