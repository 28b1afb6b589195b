"""Read and update a sweep's folder and its `sweep.json`, which lists the jobs and their status.

Several processes may write `sweep.json`: that of the sweep, and one per job if a launcher runs jobs in parallel.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from growlm.reporting.reading.override_text import normalize_override, unquote
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
"""Lock files of the process that runs the sweep, and of a process that updates sweep.json."""
MAX_FOLDER_BYTES = 100
"""Maximum length of the name of a job's folder; file systems allow 255 bytes, with the suffix of a log file."""
STATUS_BY_EXIT_CODE = {1: FAILED, 2: WRONG, 130: INTERRUPTED, 143: INTERRUPTED}
"""Status of a job that has not finished, by exit code; INTERRUPTED for other codes."""


class SweepFolder:
    """A sweep's folder, with locked updates of its `sweep.json`.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock_sweep(self) -> BinaryIO:
        """Lock the sweep for the process that runs it.

        Raises:
            LockedError: If another process runs the sweep.
        """
        return acquire_lock(self.path / LOCK_NAMES[0])

    def read(self) -> SweepRecord:
        """Read sweep.json.

        Raises:
            UserError: If it cannot be read, or is not a valid record of a sweep.
        """
        return read_sweep_record(self.path, SWEEP_DIR_KEY)

    def write(self, sweep: SweepRecord) -> None:
        """Write sweep.json with one job per line, to keep it compact: every job rewrites it several times."""
        record = {**vars(sweep), "dials": sweep.parameter_keys, "jobs": []}
        jobs = ",\n    ".join(json.dumps(vars(job)) for job in sweep.jobs)
        text = json.dumps(record, indent=2)
        if jobs:
            text = text.replace('"jobs": []', f'"jobs": [\n    {jobs}\n  ]')
        atomic_write_text(self.path / SWEEP_FILE, text + "\n")

    def get_or_add_job(self, number: int, overrides: Sequence[str]) -> Job:
        """Return a job by its number; add or replace it if it is new or its overrides differ."""
        with self._locked_update() as sweep:
            jobs = {job.number: job for job in sweep.jobs}
            given = [normalize_override(o) for o in overrides]
            if number not in jobs or given != [
                normalize_override(o) for o in jobs[number].overrides
            ]:
                jobs[number] = make_job(number, overrides, sweep.constants)
                sweep.jobs = [jobs[n] for n in sorted(jobs)]
            return jobs[number]

    def update_job(self, number: int, **changes: Any) -> None:
        """Update fields of a job in sweep.json."""
        with self._locked_update() as sweep:
            job = next(job for job in sweep.jobs if job.number == number)
            for name, value in changes.items():
                setattr(job, name, value)

    def lock_job(self, number: int) -> BinaryIO:
        """Lock a job for the process that runs it.

        Raises:
            LockedError: If another process runs the job.
        """
        return acquire_lock(self.path / f".job-{number}.lock")

    def mark_dead_jobs(self, status: str) -> None:
        """Set the status of running jobs whose processes have died without recording their end."""
        with self._locked_update() as sweep:
            for job in sweep.jobs:
                if job.status != RUNNING:
                    continue
                with suppress(LockedError):  # it still runs, only its launcher has stopped waiting
                    self.lock_job(job.number).close()
                    job.status, job.code, job.message = status, 1, "its process ended"

    def check_exists(self) -> None:
        """Check that the folder still exists.

        Raises:
            FolderRemovedError: If it does not.
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
    """Return the record of a job that has not started.

    Args:
        number: Number of the job, from 0.
        overrides: Overrides of the job.
        constants: Overrides that all jobs share; the others are the sweep parameters.
    """
    swept = [o for o in overrides if o not in constants]
    parameters = {key: unquote(value) for key, _, value in (o.partition("=") for o in swept)}
    return Job(number, list(overrides), parameters, _name_job_folder(number, parameters))


def _name_job_folder(number: int, parameters: dict[str, str]) -> str:
    """Return the name of a job's folder: its number and parameters, shortened with a checksum if it is long."""

    def join(values: Iterable[str]) -> str:
        pairs = zip(parameters, values, strict=True)
        shown = [f"{key.rpartition('.')[2]}={value}" for key, value in pairs]
        return re.sub(r"[^\w.=-]", "-", "_".join([str(number), *shown]))

    name = join(parameters.values())
    if len(name.encode()) <= MAX_FOLDER_BYTES:
        return name
    checksum = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:8]
    short = join(_shorten(value) for value in parameters.values())
    kept = short.encode()[: MAX_FOLDER_BYTES - len(checksum) - 1].decode(errors="ignore")
    return f"{kept}-{checksum}"


def _shorten(value: str) -> str:
    """Return the beginning and the end of a long value."""
    return value if len(value) <= 24 else f"{value[:10]}...{value[-10:]}"
