"""Keep a directory of entries within a size limit by removing the least recently used.

An entry is a folder that is named by its key and contains a marker file. Anything else in the directory is left
alone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENTRY_NAME = re.compile(r"[0-9a-f]{32}")
PARTIAL_NAME = re.compile(r"\.([0-9a-f]{32})(\.[0-9a-f]{8})?\.partial")
"""Name of an entry while it is being written or removed."""


@dataclass(frozen=True)
class LRUDirectory:
    """A directory of entries, one per key, that keeps the most recently used ones.

    Args:
        path: Path of the directory, which need not exist.
        max_bytes: Maximum total size of the entries.
        marker_file: Name of a file that every entry contains.
    """

    path: Path
    max_bytes: int
    marker_file: str

    def list_entries(self) -> list[Path]:
        """Return the paths of all entries, most recently used first."""
        with suppress(OSError), os.scandir(self.path) as found:
            names = [entry.name for entry in found if ENTRY_NAME.fullmatch(entry.name)]
            known = [name for name in names if os.path.isfile(self.path / name / self.marker_file)]
            return sorted((self.path / name for name in known), key=get_last_used, reverse=True)
        return []

    def iter_partials(self) -> Iterator[tuple[str, Path]]:
        """Yield the key and path of each partial entry: being written, or left by a killed process."""
        for path in self.path.glob(".*.partial"):
            if (match := PARTIAL_NAME.fullmatch(path.name)) and path.is_dir():
                yield match[1], path

    def make_partial_path(self, key: str) -> Path:
        """Return a new unique path for writing an entry."""
        return self.path / f".{key}.{secrets.token_hex(4)}.partial"

    def remove_entry(self, key: str) -> None:
        """Remove an entry at once, even while another process reads it."""
        trash = self.make_partial_path(key)
        with suppress(OSError):
            (self.path / key).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def evict_to_limit(self, in_use: Collection[str]) -> None:
        """Remove the least recently used entries that exceed the size limit.

        Args:
            in_use: Keys of entries to keep whatever their size. Other entries are kept, most recently used first,
                if they fit in addition.
        """
        seen: set[int] = set()
        total = 0
        for entry in [*(self.path / key for key in in_use), *self.list_entries()]:
            files = _get_entry_file_sizes(entry)
            size = sum(files[inode] for inode in files.keys() - seen)
            if entry.name in in_use or total + size <= self.max_bytes:
                total += size
                seen.update(files)
            else:
                self.remove_entry(entry.name)


_ENTRY_FILE_SIZES: dict[tuple[Path, int], dict[int, int]] = {}
"""Cached results of `_get_file_sizes`, by path and inode of the entry. Entries do not change, and without the
cache every job of a sweep would stat the files of all earlier jobs."""


def _get_entry_file_sizes(entry: Path) -> dict[int, int]:
    """Return the file sizes of an entry by inode, cached in this process."""
    try:
        key = entry, entry.stat().st_ino
    except OSError:  # removed meanwhile
        return {}
    if key not in _ENTRY_FILE_SIZES:
        _ENTRY_FILE_SIZES[key] = _get_file_sizes(entry)
    return _ENTRY_FILE_SIZES[key]


def _get_file_sizes(folder: Path) -> dict[int, int]:
    """Return the size of everything below a folder, by inode."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            file = path.stat()
            found[file.st_ino] = file.st_size
    return found


def get_folder_size(folder: Path, seen_inodes: set[int]) -> int:
    """Return the total size of the files below a folder whose inodes are not in `seen_inodes`, and add them to it.

    Several entries may hard-link the same file.
    """
    files = _get_file_sizes(folder)
    total = sum(bytes for inode, bytes in files.items() if inode not in seen_inodes)
    seen_inodes.update(files)
    return total


def get_last_used(path: Path) -> float:
    """Return when an entry was last used, in seconds as in `time.time()`; 0 if it no longer exists."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
