"""Cache file checksums, so that an unchanged file is not read again.

A file counts as unchanged if its size, inode, mtime and ctime are the same. Programs cannot set the ctime back, so
an edit in place that restores the mtime is noticed. `chmod` and renaming change the ctime too; the file is then
read once more. File systems without a ctime of their own (FAT, exFAT, some network and FUSE mounts) repeat the
mtime, and an edit that restores it goes unnoticed there.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from growlm.runtime.errors import DiskError, UserError
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.input_files import read_json
from growlm.storage.integrity import hash_file

MIN_AGE_NS = 2_000_000_000
"""Minimum age of a cached file: a newer one may change again without its times showing it."""
MAX_FILES = 500_000
"""Maximum number of cached files; the most recent checksums are kept."""
MAX_CACHE_FILE_BYTES = 2**28
"""Maximum size of the cache file: enough for `MAX_FILES` long paths."""
SAVE_INTERVAL_S = 5.0
MAX_SAVE_TIME_FRACTION = 0.05
"""Maximum fraction of its time that a process spends on saving, except for the last save."""


class FileDigestCache:
    """A cache of file checksums, in memory and, after `save`, on disk.

    Args:
        path: File to save to; nothing is saved while its folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[str, list[int | str]] | None = None
        self._unsaved: dict[str, list[int | str]] = {}
        self._next_save = time.monotonic() + SAVE_INTERVAL_S

    def digest(self, path: Path) -> str:
        """Return a file's SHA-256; read the file only if it changed since the last call.

        Raises:
            OSError: If the file cannot be read.
        """
        if self._digests is None:
            self._digests = self._read()
        now, stat = time.time_ns(), path.stat()
        stamp = get_stat_signature(stat)
        known = self._digests.get(str(path))
        if known is not None and known[:-1] == stamp:
            return str(known[-1])
        digest = hash_file(path)
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > MIN_AGE_NS:
            self._digests[str(path)] = self._unsaved[str(path)] = [*stamp, digest]
            if time.monotonic() > self._next_save:
                self.save()
        return digest

    def save(self) -> None:
        """Add new checksums to the cache file, next to those of other processes; ignore a full disk."""
        if not self._unsaved or not self.path.parent.is_dir():
            return
        start = time.monotonic()
        on_disk = self._read()
        entries = [(path, known) for path, known in on_disk.items() if path not in self._unsaved]
        entries += self._unsaved.items()
        with suppress(DiskError):  # the files are read again next time
            atomic_write_text(self.path, json.dumps(dict(entries[-MAX_FILES:])))
            self._unsaved = {}
        end = time.monotonic()
        self._next_save = end + max(SAVE_INTERVAL_S, (end - start) / MAX_SAVE_TIME_FRACTION)

    def _read(self) -> dict[str, list[int | str]]:
        try:
            found: dict[str, list[int | str]] = read_json(
                self.path,
                "data.cache",
                self.path.parent,
                dict[str, list[Any]],
                max_bytes=MAX_CACHE_FILE_BYTES,
            )
        except UserError:  # missing or damaged: files are read again
            return {}
        return {path: known for path, known in found.items() if len(known) == 5}


def get_stat_signature(stat: os.stat_result) -> list[int]:
    """Return the values that change when a file changes: size, mtime, ctime, inode."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
