"""The folder of a sweep, and `sweep.json` in it: which jobs there are, and how far each has come.

Several processes may write it: the sweep's own, and one for each job where a launcher runs them side by side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from growlm.reporting.reading.sweep_record import (
    FAILED,
    INTERRUPTED,
    RUNNING,
    SWEEP_FILE,
    WRONG,
    Job,
    SweepRecord,
    read_sweep_record,
)
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.locks import LockedError, acquire_lock, wait_for_lock
from growlm.storage.watched_folders import FolderRemovedError

SWEEP_DIR_KEY = "hydra.sweep.dir"
LOCK_NAMES = (".lock", ".sweep.json.lock")
"""Of the process that runs the sweep, and of whoever changes sweep.json."""
STATUS_BY_EXIT_CODE = {1: FAILED, 2: WRONG, 130: INTERRUPTED, 143: INTERRUPTED}
"""Of a job that has not finished, by its exit code."""


class SweepFolder:
    """Reads and changes `sweep.json`.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock_sweep(self) -> BinaryIO:
        """For the process that runs the sweep.

        Raises:
            LockedError: If another one does.
        """
        return acquire_lock(self.path / LOCK_NAMES[0])

    def read(self) -> SweepRecord:
        """What sweep.json says.

        Raises:
            UserError: If it cannot be read, or is no record of a sweep.
        """
        return read_sweep_record(self.path, SWEEP_DIR_KEY)

    def write(self, sweep: SweepRecord) -> None:
        """Write sweep.json whole, a job a line: every job of a sweep of thousands has it written several times."""
        record = {**vars(sweep), "dials": sweep.parameter_keys, "jobs": []}
        jobs = ",\n    ".join(json.dumps(vars(job)) for job in sweep.jobs)
        text = json.dumps(record, indent=2)
        if jobs:
            text = text.replace('"jobs": []', f'"jobs": [\n    {jobs}\n  ]')
        atomic_write_text(self.path / SWEEP_FILE, text + "\n")

    def get_or_add_job(self, number: int, overrides: Sequence[str]) -> Job:
        """A job by its number; entered where it is new, or has other settings than were known."""
        with self._locked_update() as sweep:
            known = {job.number: job for job in sweep.jobs}
            if number not in known or known[number].overrides != list(overrides):
                known[number] = make_job(number, overrides, sweep.constants)
                sweep.jobs = [known[number] for number in sorted(known)]
            return known[number]

    def update_job(self, number: int, **changes: Any) -> None:
        """Change fields of a job."""
        with self._locked_update() as sweep:
            job = next(job for job in sweep.jobs if job.number == number)
            for name, value in changes.items():
                setattr(job, name, value)

    def lock_job(self, number: int) -> BinaryIO:
        """For the process that runs the job.

        Raises:
            LockedError: If another one does.
        """
        return acquire_lock(self.path / f".job-{number}.lock")

    def mark_dead_jobs(self, status: str) -> None:
        """Enter the end of jobs whose processes have ended without a word."""
        with self._locked_update() as sweep:
            for job in sweep.jobs:
                if job.status != RUNNING:
                    continue
                with suppress(
                    LockedError
                ):  # it still runs: its launcher has only stopped waiting for it
                    self.lock_job(job.number).close()
                    job.status, job.code, job.message = status, 1, "its process ended"

    def check_exists(self) -> None:
        """Check that the folder is still there.

        Raises:
            RemovedError: If not.
        """
        if not (self.path / SWEEP_FILE).is_file():
            raise FolderRemovedError(self.path)

    @contextmanager
    def _locked_update(self) -> Iterator[SweepRecord]:
        self.check_exists()
        with wait_for_lock(self.path / LOCK_NAMES[1]):
            sweep = self.read()
            yield sweep
            self.write(sweep)


def make_job(number: int, overrides: Sequence[str], constants: Sequence[str]) -> Job:
    """A job that has not begun.

    Args:
        number: Of the job, from 0.
        overrides: Its own.
        constants: Those that all jobs have; the others are dials.
    """
    own = [o for o in overrides if o not in constants]
    dials = {key: value for key, _, value in (o.partition("=") for o in own)}
    shown = [f"{key.rpartition('.')[2]}={value}" for key, value in dials.items()]
    folder = re.sub(r"[^\w.=-]", "-", "_".join([str(number), *shown]))
    return Job(number, list(overrides), dials, folder)
