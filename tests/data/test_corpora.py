"""Where documents come from, and every way in which text files cannot be had."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from growlm.data import embedded_documents, find_text_files, story, text_documents
from growlm.errors import UserError


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


def test_embedded_documents_are_the_stories_in_order():
    assert list(embedded_documents(seed=7, count=3)) == [story(7, 0), story(7, 1), story(7, 2)]


def test_a_folder_gives_its_text_files_sorted(folder):
    names = [str(file.relative_to(folder)) for file in find_text_files(str(folder))]
    assert names == ["a.txt", "b.txt", os.path.join("below", "c.txt")]


def test_a_glob_gives_its_matches_and_a_file_itself(tmp_path):
    for name in ("x1.txt", "x2.text", "y.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "x3").mkdir()
    assert find_text_files(f"{tmp_path}/x*") == [tmp_path / "x1.txt", tmp_path / "x2.text"]
    assert find_text_files(f"{tmp_path}/**/y*") == [tmp_path / "y.txt"]
    assert find_text_files(f"{tmp_path}/x2.text") == [tmp_path / "x2.text"]


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_text_files("x.txt") == find_text_files("~/x.txt") == [tmp_path / "x.txt"]


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["a one", "b one", "b two", "b three", "c one", "c two"]),
        ("paragraph", ["a one", "b one\nb two", "b three", "c one\n \nc two"]),
        ("document", ["a one", "b one\nb two\n\n\nb three", "c one\n \nc two"]),
    ],
)
def test_text_documents(folder, sample_by, expected):
    documents = text_documents(str(folder), sample_by)
    assert [document.strip() for document in documents] == expected


def test_reading_needs_no_network_and_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert len(list(text_documents(str(folder), "line"))) == 6
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["", "  ", "missing.txt", "missing/*.txt", "no_text", "blank.txt"])
def test_paths_without_text_are_refused_before_anything_is_read(path, tmp_path, monkeypatch):
    (tmp_path / "no_text").mkdir()
    (tmp_path / "no_text" / "notes.md").write_text("notes")
    (tmp_path / "blank.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    for find in (find_text_files, lambda path: text_documents(path, "line")):
        with pytest.raises(UserError) as caught:
            find(path)
        assert caught.value.key == "data.path"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("text")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read whatever its mode says
    with pytest.raises(UserError, match=r"data\.path=.*cannot read .*x\.txt: Permission denied"):
        find_text_files(str(tmp_path))


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    documents = text_documents(str(tmp_path), "line")
    with pytest.raises(UserError, match=r"data\.path=.*b\.txt is not UTF-8"):
        list(documents)


def test_an_unknown_unit_is_refused_at_the_call(folder):
    with pytest.raises(UserError, match=r"data\.sample_by=word: must be one of line, paragraph"):
        text_documents(str(folder), "word")
