"""States after whole phases, kept under a key of all that they depend on, for other runs to begin with.

`<folder>/<key>/` holds

    state/                      as in a run's `resume/` (`run_state.py`)
    artefacts/<name>/           what the phases so far have left
    training_history.jsonl      of the phases so far
    origin.json                 the run that trained the last of them

Files are hard links to those of the run where the file system allows it. An entry is whole or not there; one that
is damaged is let go of. `<folder>/locks/<key>` is held by the process that trains towards an entry.
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
"""Seconds after which nobody writes a half-written entry any more."""


class OriginRecord(TypedDict):
    """The contents of `origin.json`."""

    run: str


@dataclass(frozen=True)
class PhaseCache:
    """The folder, made when something is first written.

    Args:
        folder: Where.
        max_bytes: What is kept at most.
    """

    folder: Path
    max_bytes: int

    @property
    def _directory(self) -> LRUDirectory:
        return LRUDirectory(self.folder, self.max_bytes, marker_file=ORIGIN_FILE)

    def has(self, key: str) -> bool:
        """Whether there is such an entry."""
        return (self.folder / key).is_dir()

    def lock(self, key: str) -> BinaryIO:
        """Take the lock for training towards an entry.

        Raises:
            LockedError: If another process has it.
            OSError: If the folder cannot be written to.
        """
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return acquire_lock(locks / key)

    def store(
        self, key: str, state: Path, checkpoints: Sequence[Path], history: bytes, run_dir: Path
    ) -> bool:
        """Keep a state; others go if it gets too much.

        Args:
            key: Of the entry.
            state: Its folder, whole.
            artefacts: Their folders, whole.
            history: All lines up to the state.
            origin: The run's folder.

        Returns:
            Whether it is kept: nothing is that is larger than all that may be.

        Raises:
            OSError: If it cannot be written; nothing is left.
        """
        seen: set[int] = set()
        if sum(get_folder_size(folder, seen) for folder in (state, *checkpoints)) > self.max_bytes:
            return False
        partial = self._directory.make_partial_path(key)
        try:
            _link_folder(state, partial / "state")
            for artefact in checkpoints:
                _link_folder(artefact, partial / "artefacts" / artefact.name)
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
        """Put an entry's files into a run.

        Args:
            key: Of the entry.
            state: Where its state goes; must not exist.
            artefacts: The folder that its artefacts go into.
            history: The file that its history goes into.

        Returns:
            The run that trained the entry's last phase.

        Raises:
            OSError: If it cannot be written, or the entry has gone meanwhile.
            UserError: If its origin is damaged, or something in it is neither a folder nor a regular file.
        """
        entry = self.folder / key
        _check_entry(entry)
        os.utime(entry)  # used now
        origin = read_checksummed_json(entry / ORIGIN_FILE, FOLDER_SETTING, entry, OriginRecord)[
            "run"
        ]
        checkpoints.mkdir(parents=True, exist_ok=True)
        history.unlink(missing_ok=True)
        copy_file(entry / HISTORY_FILE, history, FOLDER_SETTING, entry)
        for artefact in sorted((entry / "artefacts").glob("*")):
            shutil.rmtree(checkpoints / artefact.name, ignore_errors=True)
            _link_folder(artefact, checkpoints / artefact.name)
        partial = state.with_name(f".{state.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _link_folder(entry / "state", partial)
        partial.rename(state)  # last: with it the run can go on
        return Path(origin)

    def remove_entry(self, key: str) -> None:
        """Let go of an entry at once, whoever reads it."""
        self._directory.remove_entry(key)

    def _remove_stale_partials(self) -> None:
        """Those of processes that were killed."""
        for _, path in self._directory.iter_partials():
            if time.time() - get_last_used(path) > STALE_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


def _check_entry(entry: Path) -> None:
    """Check that an entry has nothing but folders and files of its own: no link, no FIFO, no device.

    Raises:
        UserError: Naming the first thing that is neither.
        OSError: If the entry has gone.
    """
    waiting = [entry]
    while waiting:
        with os.scandir(waiting.pop()) as all_found:
            for found in all_found:
                if found.is_dir(follow_symlinks=False):
                    waiting.append(Path(found.path))
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
    except (AttributeError, OSError):  # another file system, or a system without links
        shutil.copy2(source, target)
