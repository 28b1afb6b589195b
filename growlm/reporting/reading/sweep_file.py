"""The jobs of a sweep, as its sweep.json tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from growlm.reporting.reading.run_files import CONFIG_FILE, Run, read_run
from growlm.reporting.reading.sweep_record import SWEEP_FILE, Job, read_sweep_record
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists


@dataclass
class Sweep:
    """A sweep and its jobs."""

    name: str
    command: list[str]
    """The overrides it was started with."""
    parameter_keys: list[str]
    runs: list[Run]
    """All jobs, also those that left no folder."""


def is_sweep_folder(folder: Path) -> bool:
    """Whether it is a sweep's folder."""
    return lexists(folder / SWEEP_FILE)


def read_sweep(folder: Path, key: str = "argument") -> Sweep:
    """Read a sweep's folder.

    Raises:
        UserError: If its file is none of ours, or no job has left anything.
    """
    record = read_sweep_record(folder, key)
    if not record.jobs:
        raise UserError(key, folder / SWEEP_FILE, "has no jobs")
    return Sweep(
        name=record.name or folder.absolute().name,
        command=record.command,
        parameter_keys=record.parameter_keys,
        runs=[_read_job(folder, job, key) for job in record.jobs],
    )


def _read_job(folder: Path, job: Job, key: str) -> Run:
    place = folder / job.folder
    there = lexists(place / CONFIG_FILE)
    run = read_run(place, key, root=folder) if there else Run(folder=place, name=job.folder)
    run.sweep_parameters = dict(job.dials)
    run.overrides = job.overrides
    run.reported_status = job.status
    run.message = job.message
    return run
