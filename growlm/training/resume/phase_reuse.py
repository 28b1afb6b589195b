"""Beginning after phases that another run has trained, and keeping one's own for others.

What is reused goes into the run's own folder, and the run goes on from there as it would after a kill.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TypedDict

from growlm.checkpoint.phase_cache import HISTORY, PhaseCache
from growlm.checkpoint.resume_state import RunState
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import ReuseConfig
from growlm.reporting.events import RunListener
from growlm.reporting.records import Reused
from growlm.runtime.errors import UserError
from growlm.runtime.signals import Interrupted, StopRequests
from growlm.storage.atomic_files import write_whole
from growlm.storage.input_files import LARGEST_HISTORY, exists, read_bytes
from growlm.storage.integrity import file_digest, read_sealed, sealed
from growlm.storage.locks import LockedError
from growlm.training.resume.state_schema import check_phase, open_state
from growlm.training.run_folder import RunFolder

KEY = "reuse.folder"
RECORD = "reused.json"
KEYS = "phase_keys.json"
WAIT = 0.3
"""Seconds between looks at whether another process has finished."""


class PhaseKeys(TypedDict):
    """The contents of `phase_keys.json`."""

    keys: list[str]


class PhaseReuse:
    """A run's dealings with the phases that are kept. Use as a context: its lock ends with it.

    Args:
        settings: Where they are kept.
        keys: Of the states after each phase but the last; empty for a run that does without.
        sizes: What keeping each of them takes, as far as the planner knows, in bytes.
        plan: Of the run.
        folder: Of the run.
        listener: Is told.
    """

    def __init__(
        self,
        settings: ReuseConfig,
        keys: Sequence[str],
        sizes: Sequence[int],
        plan: Plan,
        folder: RunFolder,
        listener: RunListener,
    ) -> None:
        cache_folder = Path(settings.folder).expanduser().absolute()
        self.cache = PhaseCache(cache_folder, round(settings.max_gb * 1e9))
        self.keys, self.plan, self.folder, self.listener = list(keys), plan, folder, listener
        too_large = [i for i, _ in enumerate(keys) if sizes[i] > self.cache.max_bytes]
        if too_large:  # nobody should wait for what will not be kept
            self._note_too_large(too_large[0])
            del self.keys[too_large[0] :]
        self._lock: BinaryIO | None = None

    def __enter__(self) -> PhaseReuse:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def begin(self, state: RunState | None, requests: StopRequests) -> RunState | None:
        """Where the run begins: after as many phases as are kept, or as will be by a process that is at it.

        Args:
            state: Of the run's own, if it has one; it is then gone on with.
            requests: Who may stop the waiting.

        Returns:
            The state to go on from; None to begin with the first phase.

        Raises:
            UserError: If the folder cannot be used.
            Interrupted: If the run was asked to stop.
        """
        if state is not None:
            # What it has trained so far, it has under the keys that it began with.
            begun = self._keys_begun_with()
            phase = self.plan.phase(state.record["phase"])
            if begun[: phase.index + 1] != self.keys[: phase.index + 1]:
                self.keys = []
            self._lock = self._try_lock(phase.index + (state.record["step"] == phase.steps))
            return state
        (self.folder.resume_dir / RECORD).unlink(missing_ok=True)
        if self.keys:
            write_whole(self.folder.resume_dir / KEYS, sealed({"keys": self.keys}))
        try:
            while True:
                done = self._await_next(requests)
                if done == 0:
                    return None
                if (state := self._take(self.plan.phases[done - 1])) is not None:
                    return state
        except OSError as error:
            reason = error.strerror or error
            allowed = f"cannot be used ({reason}); reuse.phases=never does without"
            raise UserError(KEY, self.cache.folder, allowed) from error

    @property
    def reused(self) -> Reused | None:
        """What this run began after, now or before it was resumed."""
        path = self.folder.resume_dir / RECORD
        if not exists(path):
            return None
        found: Reused = read_sealed(path, "resume", self.folder.path, Reused)
        return found

    def phase_ended(self, phase: PlannedPhase, history: Path) -> None:
        """Keep a phase's state, which has just been written, and let those go on who wait for it."""
        if phase.index >= len(self.keys):
            return
        following = self._try_lock(phase.index + 1)  # before anybody who waits can
        key = self.keys[phase.index]
        try:
            if not self.cache.has(key) and not self._put(key, phase, history):
                self._note_too_large(phase.index)
        except OSError as error:
            reason = error.strerror or error
            self.listener.noted(f"warning: {phase.name} cannot be kept for reuse: {reason}")
        self._let_go()
        self._lock = following

    def _await_next(self, requests: StopRequests) -> int:
        """How many phases are kept, once nobody else trains the one after them."""
        while True:
            kept = [i + 1 for i, key in enumerate(self.keys) if self.cache.has(key)]
            done = max(kept, default=0)
            if done == len(self.keys):
                return done
            try:
                self._lock = self.cache.lock(self.keys[done])
            except LockedError as error:
                name = self.plan.phases[done].name
                self.listener.task_progress(
                    f"waiting for {name}, which {error.owner} trains", 0, None
                )
                if (code := requests.asked) is not None:
                    raise Interrupted(code, f"while waiting for {name}") from None
                time.sleep(WAIT)
                continue
            if not self.cache.has(self.keys[done]):
                return done
            self._let_go()  # it was finished between the two looks

    def _take(self, last: PlannedPhase) -> RunState | None:
        """Begin after a phase; None if its entry has gone or is damaged."""
        key = self.keys[last.index]
        target = self.folder.state_folder(last, last.steps)
        checkpoints = self.folder.path / "checkpoints"
        try:
            origin = self.cache.take(key, target, checkpoints, checkpoints / HISTORY)
            state = open_state(target)
            check_phase(state, self.plan)
            told = state.record["run"]["history"]["sha256"]
            if file_digest(checkpoints / HISTORY, KEY) != told:
                raise UserError(KEY, self.cache.folder / key / HISTORY, "is damaged")
        except (OSError, UserError) as error:
            self._let_go()
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, UserError):
                self.listener.noted(f"warning: {error}; trained again")
                self.cache.drop(key)
            elif self.cache.has(key):
                raise
            return None
        names = [phase.name for phase in self.plan.phases[: last.index + 1]]
        reused = Reused(names, _shown(origin), state.record["run"]["seconds"])
        write_whole(self.folder.resume_dir / RECORD, sealed(vars(reused)))
        return state

    def _put(self, key: str, phase: PlannedPhase, history: Path) -> bool:
        settings = [p.settings for p in self.plan.phases[: phase.index + 1]]
        names = [name for s in settings for name in (s.save_initial_as, s.save_as)]
        artefacts = [self.folder.path / "checkpoints" / name for name in names if name is not None]
        state = self.folder.state_folder(phase, phase.steps)
        text = read_bytes(history, KEY, self.folder.path, LARGEST_HISTORY)
        return self.cache.put(key, state, artefacts, text, self.folder.path)

    def _keys_begun_with(self) -> list[str]:
        path = self.folder.resume_dir / KEYS
        if not exists(path):
            return []
        return list(read_sealed(path, "resume", self.folder.path, PhaseKeys)["keys"])

    def _note_too_large(self, index: int) -> None:
        name, limit = self.plan.phases[index].name, f"reuse.max_gb={self.cache.max_bytes / 1e9:g}"
        self.listener.noted(
            f"the state after {name} is larger than {limit}, and not kept for reuse"
        )

    def _try_lock(self, index: int) -> BinaryIO | None:
        if index >= len(self.keys):
            return None
        try:
            return self.cache.lock(self.keys[index])
        except (LockedError, OSError):
            return None  # another process is at the same phase: both train it

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None


def _shown(path: Path) -> str:
    """As short as it is unambiguous from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
