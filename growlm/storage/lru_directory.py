"""A folder of entries, one for each key, that is kept within bounds: what was used last is kept longest.

An entry is a folder that is named by its key and has a file by which it is known; whatever else lies there is
somebody else's and left alone.
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
"""What an entry is called before it is whole, and once it is let go of."""


@dataclass(frozen=True)
class LRUDirectory:
    """The folder; need not exist.

    Args:
        path: Where.
        max_bytes: What is kept at most.
        known_by: Name of a file that every entry has.
    """

    path: Path
    max_bytes: int
    marker_file: str

    def list_entries(self) -> list[Path]:
        """Those that are there, the last used first."""
        with suppress(OSError), os.scandir(self.path) as found:
            names = [entry.name for entry in found if ENTRY_NAME.fullmatch(entry.name)]
            known = [name for name in names if os.path.isfile(self.path / name / self.marker_file)]
            return sorted((self.path / name for name in known), key=get_last_used, reverse=True)
        return []

    def iter_partials(self) -> Iterator[tuple[str, Path]]:
        """What is being written or has been left by killed processes, with the key it is of."""
        for path in self.path.glob(".*.partial"):
            if (match := PARTIAL_NAME.fullmatch(path.name)) and path.is_dir():
                yield match[1], path

    def make_partial_path(self, key: str) -> Path:
        """A name for an entry that is not whole."""
        return self.path / f".{key}.{secrets.token_hex(4)}.partial"

    def remove_entry(self, key: str) -> None:
        """Let go of an entry at once, whoever reads it."""
        trash = self.make_partial_path(key)
        with suppress(OSError):
            (self.path / key).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def evict_to_limit(self, in_use: Collection[str]) -> None:
        """Let go of entries that are too much.

        Args:
            in_use: Keys of those that stay, however large they are. Of the others, the last used first, those
                stay that fit beside them.
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
"""Of each entry, by its path and inode: see `_files`. Entries don't change; in a sweep, every job would look at
the files of all jobs before it."""


def _get_entry_file_sizes(entry: Path) -> dict[int, int]:
    """`_files` of an entry, looked at once by this process."""
    try:
        key = entry, entry.stat().st_ino
    except OSError:  # gone meanwhile
        return {}
    if key not in _ENTRY_FILE_SIZES:
        _ENTRY_FILE_SIZES[key] = _get_file_sizes(entry)
    return _ENTRY_FILE_SIZES[key]


def _get_file_sizes(folder: Path) -> dict[int, int]:
    """Bytes of everything below a folder, by inode."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            file = path.stat()
            found[file.st_ino] = file.st_size
    return found


def get_folder_size(folder: Path, seen_inodes: set[int]) -> int:
    """Bytes of the files below a folder that have not been seen: several entries may have links to one."""
    files = _get_file_sizes(folder)
    total = sum(bytes for inode, bytes in files.items() if inode not in seen_inodes)
    seen_inodes.update(files)
    return total


def get_last_used(path: Path) -> float:
    """When, as `time.time()` has it; long ago for what has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
