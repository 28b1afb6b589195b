"""Cache the state after each completed phase, so that other runs with the same settings can start from it.

The key of an entry is the fingerprint of everything that the state depends on. `<folder>/<key>/` holds

    state/                      the resume state (`resume_state.py`)
    artefacts/<name>/           the checkpoints saved by the phases so far
    training_history.jsonl      the history of the phases so far
    origin.json                 the run that trained the last of these phases

Files are hard links to those of the run where the file system supports it. Entries are written atomically, and a
damaged one is removed. The process that trains towards an entry holds the lock `<folder>/locks/<key>`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

from growlm.runtime.errors import UserError
from growlm.storage.input_files import copy_file
from growlm.storage.integrity import dump_checksummed_json, read_checksummed_json
from growlm.storage.locks import acquire_lock
from growlm.storage.lru_directory import LRUDirectory, get_folder_size, get_last_used

HISTORY_FILE = "training_history.jsonl"
ORIGIN_FILE = "origin.json"
FOLDER_SETTING = "reuse.folder"
STALE_AFTER_S = 3600.0
"""Seconds after which a half-written entry is taken to be abandoned."""


class OriginRecord(TypedDict):
    """The contents of `origin.json`."""

    run: str


@dataclass(frozen=True)
class PhaseCache:
    """Cache of phase states in a folder, which is created on the first write.

    Args:
        folder: Folder of the cache.
        max_bytes: Total size at which the least recently used entries are evicted.
    """

    folder: Path
    max_bytes: int

    @property
    def _directory(self) -> LRUDirectory:
        return LRUDirectory(self.folder, self.max_bytes, marker_file=ORIGIN_FILE)

    def has(self, key: str) -> bool:
        """Return whether the cache has an entry."""
        return (self.folder / key).is_dir()

    def lock(self, key: str) -> BinaryIO:
        """Acquire the lock for training towards an entry.

        Raises:
            LockedError: If another process holds it.
            OSError: If the folder cannot be written to.
        """
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return acquire_lock(locks / key)

    def store(
        self, key: str, state: Path, checkpoints: Sequence[Path], history: bytes, run_dir: Path
    ) -> bool:
        """Add an entry, and evict the least recently used ones beyond the size limit.

        Args:
            key: Key of the entry.
            state: Complete folder of the resume state.
            checkpoints: Complete folders of the checkpoints.
            history: Training history up to the state, as JSON lines.
            run_dir: Folder of the run that trained the phase.

        Returns:
            Whether the entry is cached; one that exceeds the limit on its own is not.

        Raises:
            OSError: If it cannot be written; nothing is left behind.
        """
        seen: set[int] = set()
        if sum(get_folder_size(folder, seen) for folder in (state, *checkpoints)) > self.max_bytes:
            return False
        partial = self._directory.make_partial_path(key)
        try:
            _link_folder(state, partial / "state")
            for checkpoint in checkpoints:
                _link_folder(checkpoint, partial / "artefacts" / checkpoint.name)
            (partial / HISTORY_FILE).write_bytes(history)
            (partial / ORIGIN_FILE).write_text(dump_checksummed_json({"run": str(run_dir)}))
            partial.rename(self.folder / key)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if self.has(key):
                return True
            raise
        self._directory.evict_to_limit(in_use={key})
        self._remove_stale_partials()
        return True

    def restore(self, key: str, state: Path, checkpoints: Path, history: Path) -> Path:
        """Copy an entry's files into a run.

        Args:
            key: Key of the entry.
            state: Target folder of the resume state; must not exist.
            checkpoints: Target folder of the checkpoints.
            history: Target file of the training history.

        Returns:
            The folder of the run that trained the entry's last phase.

        Raises:
            OSError: If something cannot be written, or the entry has been removed meanwhile.
            UserError: If `origin.json` is damaged, or the entry has anything but folders and regular files.
        """
        entry = self.folder / key
        _check_entry(entry)
        os.utime(entry)  # marks the entry as recently used
        origin = read_checksummed_json(entry / ORIGIN_FILE, FOLDER_SETTING, entry, OriginRecord)
        checkpoints.mkdir(parents=True, exist_ok=True)
        history.unlink(missing_ok=True)
        copy_file(entry / HISTORY_FILE, history, FOLDER_SETTING, entry)
        for checkpoint in sorted((entry / "artefacts").glob("*")):
            shutil.rmtree(checkpoints / checkpoint.name, ignore_errors=True)
            _link_folder(checkpoint, checkpoints / checkpoint.name)
        partial = state.with_name(f".{state.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _link_folder(entry / "state", partial)
        partial.rename(state)  # last: once it exists, the run can be resumed
        return Path(origin["run"])

    def remove_entry(self, key: str) -> None:
        """Remove an entry immediately, even if another process is reading it."""
        self._directory.remove_entry(key)

    def _remove_stale_partials(self) -> None:
        """Remove half-written entries of processes that were killed."""
        for _, path in self._directory.iter_partials():
            if time.time() - get_last_used(path) > STALE_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


def _check_entry(entry: Path) -> None:
    """Check that an entry has only folders and regular files: no link, FIFO or device.

    Raises:
        UserError: For the first other kind of file.
        OSError: If the entry has been removed meanwhile.
    """
    pending = [entry]
    while pending:
        with os.scandir(pending.pop()) as scan:
            for found in scan:
                if found.is_dir(follow_symlinks=False):
                    pending.append(Path(found.path))
                elif not found.is_file(follow_symlinks=False):
                    raise UserError(
                        FOLDER_SETTING, found.path, "is neither a folder nor a regular file"
                    )


def _link_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except (AttributeError, OSError):  # another file system, or no support for links
        shutil.copy2(source, target)
