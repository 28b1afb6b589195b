"""The jobs of a sweep, as its sweep.json tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from growlm.reporting.reading.run_files import CONFIG, Run, read_run
from growlm.reporting.reading.sweep_record import RECORD, Job, read_record
from growlm.runtime.errors import UserError
from growlm.storage.input_files import exists


@dataclass
class Sweep:
    """A sweep and its jobs."""

    name: str
    command: list[str]
    """The overrides it was started with."""
    dials: list[str]
    runs: list[Run]
    """All jobs, also those that left no folder."""


def is_sweep(folder: Path) -> bool:
    """Whether it is a sweep's folder."""
    return exists(folder / RECORD)


def read_sweep(folder: Path, key: str = "argument") -> Sweep:
    """Read a sweep's folder.

    Raises:
        UserError: If its file is none of ours, or no job has left anything.
    """
    record = read_record(folder, key)
    if not record.jobs:
        raise UserError(key, folder / RECORD, "has no jobs")
    return Sweep(
        name=record.name or folder.absolute().name,
        command=record.command,
        dials=record.dials,
        runs=[_job(folder, job, key) for job in record.jobs],
    )


def _job(folder: Path, job: Job, key: str) -> Run:
    place = folder / job.folder
    there = exists(place / CONFIG)
    run = read_run(place, key, root=folder) if there else Run(folder=place, name=job.folder)
    run.dials = dict(job.dials)
    run.overrides = job.overrides
    run.told_status = job.status
    run.message = job.message
    return run
