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
    RECORD,
    RUNNING,
    WRONG,
    Job,
    Sweep,
    read_record,
)
from growlm.storage.atomic_files import write_whole
from growlm.storage.locks import LockedError, take_lock, wait_for_lock
from growlm.storage.watched_folders import RemovedError

KEY = "hydra.sweep.dir"
LOCKS = (".lock", ".sweep.json.lock")
"""Of the process that runs the sweep, and of whoever changes sweep.json."""
STATUS = {1: FAILED, 2: WRONG, 130: INTERRUPTED, 143: INTERRUPTED}
"""Of a job that has not finished, by its exit code."""


class SweepFolder:
    """Reads and changes `sweep.json`.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> BinaryIO:
        """For the process that runs the sweep.

        Raises:
            LockedError: If another one does.
        """
        return take_lock(self.path / LOCKS[0])

    def read(self) -> Sweep:
        """What sweep.json says.

        Raises:
            UserError: If it cannot be read, or is no record of a sweep.
        """
        return read_record(self.path, KEY)

    def write(self, sweep: Sweep) -> None:
        """Write sweep.json whole, a job a line: every job of a sweep of thousands has it written several times."""
        record = {**vars(sweep), "dials": sweep.dials, "jobs": []}
        jobs = ",\n    ".join(json.dumps(vars(job)) for job in sweep.jobs)
        text = json.dumps(record, indent=2)
        if jobs:
            text = text.replace('"jobs": []', f'"jobs": [\n    {jobs}\n  ]')
        write_whole(self.path / RECORD, text + "\n")

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """A job by its number; entered where it is new, or has other settings than were known."""
        with self._changing() as sweep:
            known = {job.number: job for job in sweep.jobs}
            if number not in known or known[number].overrides != list(overrides):
                known[number] = make_job(number, overrides, sweep.constants)
                sweep.jobs = [known[number] for number in sorted(known)]
            return known[number]

    def update(self, number: int, **changes: Any) -> None:
        """Change fields of a job."""
        with self._changing() as sweep:
            job = next(job for job in sweep.jobs if job.number == number)
            for name, value in changes.items():
                setattr(job, name, value)

    def lock_job(self, number: int) -> BinaryIO:
        """For the process that runs the job.

        Raises:
            LockedError: If another one does.
        """
        return take_lock(self.path / f".job-{number}.lock")

    def close_running(self, status: str) -> None:
        """Enter the end of jobs whose processes have ended without a word."""
        with self._changing() as sweep:
            for job in sweep.jobs:
                if job.status != RUNNING:
                    continue
                with suppress(
                    LockedError
                ):  # it still runs: its launcher has only stopped waiting for it
                    self.lock_job(job.number).close()
                    job.status, job.code, job.message = status, 1, "its process ended"

    def check(self) -> None:
        """Check that the folder is still there.

        Raises:
            RemovedError: If not.
        """
        if not (self.path / RECORD).is_file():
            raise RemovedError(self.path)

    @contextmanager
    def _changing(self) -> Iterator[Sweep]:
        self.check()
        with wait_for_lock(self.path / LOCKS[1]):
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
