"""Reuse phases that another run has trained, and cache this run's phases for others.

Reused states are copied into the run's own folder, and the run resumes from them as it would after being killed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TypedDict

from growlm.checkpoint.phase_cache import HISTORY_FILE, PhaseCache
from growlm.checkpoint.resume_state import ResumeState
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import ReuseConfig
from growlm.reporting.events import RunListener
from growlm.reporting.records import ReusedPhases
from growlm.runtime.errors import UserError
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.input_files import MAX_HISTORY_BYTES, lexists, read_bytes
from growlm.storage.integrity import dump_checksummed_json, hash_file, read_checksummed_json
from growlm.storage.locks import LockedError
from growlm.training.resume.state_schema import check_state_phase, open_state
from growlm.training.run_folder import RunFolder

FOLDER_SETTING = "reuse.folder"
REUSED_FILE = "reused.json"
CACHE_KEYS_FILE = "phase_keys.json"
POLL_SECONDS = 0.3
"""Seconds between checks of whether another process has finished."""


class CacheKeysRecord(TypedDict):
    """The contents of `phase_keys.json`."""

    keys: list[str]


class PhaseReuse:
    """A run's access to the phase cache; a context manager that releases its lock at the end.

    Args:
        settings: Settings of the cache.
        cache_keys: Keys of the states after each phase but the last; empty for a run that does not use the cache.
        state_sizes: Estimated bytes of each cache entry.
        plan: Plan of the run.
        folder: Folder of the run.
        listener: Receiver of messages.
    """

    def __init__(
        self,
        settings: ReuseConfig,
        cache_keys: Sequence[str],
        state_sizes: Sequence[int],
        plan: Plan,
        folder: RunFolder,
        listener: RunListener,
    ) -> None:
        cache_folder = Path(settings.folder).expanduser().absolute()
        self.cache = PhaseCache(cache_folder, round(settings.max_gb * 1e9))
        self.cache_keys, self.plan, self.folder, self.listener = (
            list(cache_keys),
            plan,
            folder,
            listener,
        )
        too_large = [i for i, _ in enumerate(cache_keys) if state_sizes[i] > self.cache.max_bytes]
        if too_large:  # no process should wait for a state that will not be cached
            self._report_too_large(too_large[0])
            del self.cache_keys[too_large[0] :]
        self._lock: BinaryIO | None = None

    def __enter__(self) -> PhaseReuse:
        return self

    def __exit__(self, *_: object) -> None:
        self._release_lock()

    def find_start_state(
        self, state: ResumeState | None, stop_requests: GracefulStop
    ) -> ResumeState | None:
        """Return the state to start from, after as many cached phases as possible.

        While another process trains the next phase that is needed, wait for it.

        Args:
            state: The run's own state, if it has one; the run then resumes from it.
            stop_requests: Signals and time limit that may end the waiting.

        Returns:
            The state to start from; None to begin with the first phase.

        Raises:
            UserError: If the cache folder cannot be used.
            Interrupted: If the run was asked to stop.
        """
        if state is not None:
            # The phases trained so far are only valid under the keys that the run began with.
            saved_keys = self._read_saved_keys()
            phase = self.plan.get_phase(state.record["phase"])
            if saved_keys[: phase.index + 1] != self.cache_keys[: phase.index + 1]:
                self.cache_keys = []
            self._lock = self._try_lock(phase.index + (state.record["step"] == phase.num_steps))
            return state
        (self.folder.resume_dir / REUSED_FILE).unlink(missing_ok=True)
        if self.cache_keys:
            atomic_write_text(
                self.folder.resume_dir / CACHE_KEYS_FILE,
                dump_checksummed_json({"keys": self.cache_keys}),
            )
        try:
            while True:
                num_cached = self._wait_for_cached_phases(stop_requests)
                if num_cached == 0:
                    return None
                if (
                    state := self._restore_from_cache(self.plan.phases[num_cached - 1])
                ) is not None:
                    return state
        except OSError as error:
            reason = error.strerror or error
            message = f"cannot be used ({reason}); to run without it, use reuse.phases=never"
            raise UserError(FOLDER_SETTING, self.cache.folder, message) from error

    @property
    def reused_phases(self) -> ReusedPhases | None:
        """The phases that this run reused when it began; None if it reused none."""
        path = self.folder.resume_dir / REUSED_FILE
        if not lexists(path):
            return None
        found: ReusedPhases = read_checksummed_json(path, "resume", self.folder.path, ReusedPhases)
        return found

    def store_phase(self, phase: PlannedPhase, history: Path) -> None:
        """Cache the state just written after a phase, and release the runs that wait for it."""
        if phase.index >= len(self.cache_keys):
            return
        next_lock = self._try_lock(phase.index + 1)  # before a waiting process can take it
        key = self.cache_keys[phase.index]
        try:
            if not self.cache.has(key) and not self._add_to_cache(key, phase, history):
                self._report_too_large(phase.index)
        except OSError as error:
            reason = error.strerror or error
            self.listener.message_logged(
                f"warning: cannot cache phase {phase.name} for reuse: {reason}"
            )
        self._release_lock()
        self._lock = next_lock

    def _wait_for_cached_phases(self, stop_requests: GracefulStop) -> int:
        """Return the number of cached phases, once no other process is training the next one."""
        while True:
            cached = [i + 1 for i, key in enumerate(self.cache_keys) if self.cache.has(key)]
            num_cached = max(cached, default=0)
            if num_cached == len(self.cache_keys):
                return num_cached
            try:
                self._lock = self.cache.lock(self.cache_keys[num_cached])
            except LockedError as error:
                name = self.plan.phases[num_cached].name
                self.listener.task_progress(
                    f"waiting for {name}, which {error.owner} is training", 0, None
                )
                if (code := stop_requests.requested_exit_code) is not None:
                    raise Interrupted(code, f"while waiting for {name}") from None
                time.sleep(POLL_SECONDS)
                continue
            if not self.cache.has(self.cache_keys[num_cached]):
                return num_cached
            self._release_lock()  # it was finished between the two checks

    def _restore_from_cache(self, last: PlannedPhase) -> ResumeState | None:
        """Copy the cached state after a phase into the run; return None if it is gone or damaged."""
        key = self.cache_keys[last.index]
        target = self.folder.state_folder(last, last.num_steps)
        checkpoints = self.folder.path / "checkpoints"
        try:
            origin = self.cache.restore(key, target, checkpoints, checkpoints / HISTORY_FILE)
            state = open_state(target)
            check_state_phase(state, self.plan)
            expected = state.record["run"]["history"]["sha256"]
            if hash_file(checkpoints / HISTORY_FILE, FOLDER_SETTING) != expected:
                raise UserError(
                    FOLDER_SETTING, self.cache.folder / key / HISTORY_FILE, "is damaged"
                )
        except (OSError, UserError) as error:
            self._release_lock()
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, UserError):
                self.listener.message_logged(f"warning: {error}; training again")
                self.cache.remove_entry(key)
            elif self.cache.has(key):
                raise
            return None
        names = [phase.name for phase in self.plan.phases[: last.index + 1]]
        reused = ReusedPhases(names, _format_path(origin), state.record["run"]["seconds"])
        atomic_write_text(self.folder.resume_dir / REUSED_FILE, dump_checksummed_json(vars(reused)))
        return state

    def _add_to_cache(self, key: str, phase: PlannedPhase, history: Path) -> bool:
        settings = [p.settings for p in self.plan.phases[: phase.index + 1]]
        names = [name for s in settings for name in (s.save_initial_as, s.save_as)]
        checkpoints = [
            self.folder.path / "checkpoints" / name for name in names if name is not None
        ]
        state = self.folder.state_folder(phase, phase.num_steps)
        text = read_bytes(history, FOLDER_SETTING, self.folder.path, MAX_HISTORY_BYTES)
        return self.cache.store(key, state, checkpoints, text, self.folder.path)

    def _read_saved_keys(self) -> list[str]:
        path = self.folder.resume_dir / CACHE_KEYS_FILE
        if not lexists(path):
            return []
        return list(
            read_checksummed_json(path, "resume", self.folder.path, CacheKeysRecord)["keys"]
        )

    def _report_too_large(self, index: int) -> None:
        name, limit = self.plan.phases[index].name, f"reuse.max_gb={self.cache.max_bytes / 1e9:g}"
        self.listener.message_logged(
            f"the state after {name} is larger than {limit} and is not cached for reuse"
        )

    def _try_lock(self, index: int) -> BinaryIO | None:
        if index >= len(self.cache_keys):
            return None
        try:
            return self.cache.lock(self.cache_keys[index])
        except (LockedError, OSError):
            return None  # another process trains the same phase: both train it

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None


def _format_path(path: Path) -> str:
    """Return the path, relative to the current folder if it lies within."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
