"""Checksums of files, remembered so that a file that has not changed is not read again.

A file counts as unchanged if its size, its inode and both its times (of change of the contents, and of the inode)
are what they were. The second time cannot be set back by programs, so a text that is edited in place and given its
old time again is noticed; `chmod` and renaming move it too, and then the file is read once more. File systems that
keep no such time of their own (FAT, exFAT, some network and FUSE mounts) repeat the first one there, and an edit
whose time was set back goes unnoticed on them.
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
"""A file that changed less than this ago may change again without its times showing it."""
MAX_FILES = 500_000
"""Files that are remembered; of more, those whose checksums were taken last."""
MAX_CACHE_FILE_BYTES = 2**28
"""Bytes of the file: room for so many long paths."""
SAVE_INTERVAL_S = 5.0
MAX_SAVE_TIME_FRACTION = 0.05
"""The most of its time that a process spends on saving, but for the last time."""


class FileDigestCache:
    """Checksums of files, in memory and, after `save`, on disk.

    Args:
        path: File that they are saved to; its folder need not exist, and nothing is saved before it does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[str, list[int | str]] | None = None
        self._unsaved: dict[str, list[int | str]] = {}
        self._next_save = time.monotonic() + SAVE_INTERVAL_S

    def digest(self, path: Path) -> str:
        """Return a file's SHA-256, reading it only if it has changed since it was last asked for.

        Raises:
            OSError: If it cannot be read.
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
        """Write what is new to disk, beside what other processes have written there; without room, do nothing."""
        if not self._unsaved or not self.path.parent.is_dir():
            return
        start = time.monotonic()
        on_disk = self._read()
        all_of_them = [
            (path, known) for path, known in on_disk.items() if path not in self._unsaved
        ]
        all_of_them += self._unsaved.items()
        with suppress(DiskError):  # then they are read again next time
            atomic_write_text(self.path, json.dumps(dict(all_of_them[-MAX_FILES:])))
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
        except UserError:  # never written, or damaged: files are read again
            return {}
        return {path: known for path, known in found.items() if len(known) == 5}


def get_stat_signature(stat: os.stat_result) -> list[int]:
    """Return what tells a file from what it was: size, both times of change, inode."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
