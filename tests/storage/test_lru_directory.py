"""Which entries of a cache are kept."""

import os

from growlm.storage import lru_directory as bounded_folder
from growlm.storage.lru_directory import LRUDirectory, get_folder_size

NAMES = {letter: letter * 32 for letter in "abcd"}


def made(path, letter, size, used):
    folder = path / NAMES[letter]
    folder.mkdir()
    (folder / "record").write_bytes(b"." * size)
    os.utime(folder, (used, used))


def kept(path):
    return {folder.name[0] for folder in path.iterdir()}


def test_what_was_let_go_of_does_not_count(tmp_path):
    made(tmp_path, "a", 10, 3000)
    made(tmp_path, "b", 100, 2000)
    made(tmp_path, "c", 10, 1000)
    LRUDirectory(tmp_path, 50, "record").evict_to_limit({NAMES["a"]})
    assert kept(tmp_path) == {"a", "c"}


def test_what_is_in_use_stays_and_counts(tmp_path):
    for letter, used in (("a", 1000), ("b", 2000), ("c", 4000), ("d", 3000)):
        made(tmp_path, letter, 20, used)
    LRUDirectory(tmp_path, 60, "record").evict_to_limit({NAMES["a"], NAMES["b"]})
    assert kept(tmp_path) == {"a", "b", "c"}
    LRUDirectory(tmp_path, 1, "record").evict_to_limit({NAMES["a"], NAMES["b"]})
    assert kept(tmp_path) == {"a", "b"}


def test_files_that_entries_share_count_once(tmp_path):
    made(tmp_path, "a", 30, 2000)
    made(tmp_path, "b", 1, 1000)
    os.link(tmp_path / NAMES["a"] / "record", tmp_path / NAMES["b"] / "linked")
    assert get_folder_size(tmp_path / NAMES["b"], set()) == 31
    LRUDirectory(tmp_path, 31, "record").evict_to_limit({NAMES["a"]})
    assert kept(tmp_path) == {"a", "b"}


def test_what_is_no_entry_is_left_alone(tmp_path):
    others = {"datasets", "backup", "f" * 31, "F" * 32, "e" * 32, "." + "a" * 32 + ".mine.partial"}
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_bytes(b"." * 100)
    (tmp_path / ("1" * 32)).write_bytes(b"a file")
    folder = LRUDirectory(tmp_path, 1, "record")
    made(tmp_path, "a", 20, 1000)
    folder.evict_to_limit(())
    assert {path.name for path in tmp_path.iterdir()} == others | {"1" * 32}
    assert list(folder.iter_partials()) == []


def test_files_of_entries_are_looked_at_once(tmp_path, monkeypatch):
    """Every job of a sweep looked at those of all jobs before it."""
    looked_at, really = [], bounded_folder._get_file_sizes
    monkeypatch.setattr(
        bounded_folder, "_get_file_sizes", lambda f: looked_at.append(f) or really(f)
    )
    folder = LRUDirectory(tmp_path, 10**9, "known")
    for number in range(20):
        entry = tmp_path / f"{number:032x}"
        entry.mkdir()
        (entry / "known").write_text("x")
        folder.evict_to_limit({entry.name})
    assert len(looked_at) == 20
