"""A folder of entries, one for each key, that is kept within bounds: what was used last is kept longest.

An entry is a folder that is named by its key and has a file by which it is known; whatever else lies there is
somebody else's and left alone.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENTRY = re.compile(r"[0-9a-f]{32}")
PARTIAL = re.compile(r"\.([0-9a-f]{32})(\.[0-9a-f]{8})?\.partial")
"""What an entry is called before it is whole, and once it is let go of."""


@dataclass(frozen=True)
class BoundedFolder:
    """The folder; need not exist.

    Args:
        path: Where.
        max_bytes: What is kept at most.
        known_by: Name of a file that every entry has.
    """

    path: Path
    max_bytes: int
    known_by: str

    def entries(self) -> list[Path]:
        """Those that are there, the last used first."""
        found = (path for path in self.path.glob("*") if ENTRY.fullmatch(path.name))
        return sorted(
            (p for p in found if (p / self.known_by).is_file()), key=last_used, reverse=True
        )

    def partials(self) -> Iterator[tuple[str, Path]]:
        """What is being written or has been left by killed processes, with the key it is of."""
        for path in self.path.glob(".*.partial"):
            if (match := PARTIAL.fullmatch(path.name)) and path.is_dir():
                yield match[1], path

    def partial(self, key: str) -> Path:
        """A name for an entry that is not whole."""
        return self.path / f".{key}.{secrets.token_hex(4)}.partial"

    def drop(self, key: str) -> None:
        """Let go of an entry at once, whoever reads it."""
        trash = self.partial(key)
        with suppress(OSError):
            (self.path / key).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def keep_within_bounds(self, in_use: Collection[str]) -> None:
        """Let go of entries that are too much.

        Args:
            in_use: Keys of those that stay, however large they are. Of the others, the last used first, those
                stay that fit beside them.
        """
        seen: set[int] = set()
        total = sum(folder_size(self.path / key, seen) for key in in_use)
        for entry in self.entries():
            if entry.name in in_use:
                continue
            with_this = set(seen)
            size = folder_size(entry, with_this)
            if total + size > self.max_bytes:
                self.drop(entry.name)
            else:
                total, seen = total + size, with_this


def folder_size(folder: Path, seen: set[int]) -> int:
    """Bytes of the files below a folder that have not been seen: several entries may have links to one."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            file = path.stat()
            total += 0 if file.st_ino in seen else file.st_size
            seen.add(file.st_ino)
    return total


def last_used(path: Path) -> float:
    """When, as `time.time()` has it; long ago for what has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
