"""Read a sweep for a report: its `sweep.json` and the run of every job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from growlm.reporting.reading.run_files import CONFIG_FILE, Run, read_run
from growlm.reporting.reading.sweep_record import SWEEP_FILE, Job, read_sweep_record
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists


@dataclass
class Sweep:
    """Sweep with the runs of its jobs."""

    name: str
    command: list[str]
    """Overrides that the sweep was started with."""
    config_options: list[str]
    """Options that name config files of the user's own."""
    parameter_keys: list[str]
    runs: list[Run]
    """Runs of all jobs, including those without a folder."""


def is_sweep_folder(folder: Path) -> bool:
    """Return whether the folder has a sweep.json."""
    return lexists(folder / SWEEP_FILE)


def read_sweep(folder: Path, key: str = "argument") -> Sweep:
    """Read a sweep's folder.

    Args:
        folder: Folder of the sweep.
        key: Setting or argument that names the folder, for error messages.

    Raises:
        UserError: If one of its files was not written by growlm, or the sweep has no jobs.
    """
    record = read_sweep_record(folder, key)
    if not record.jobs:
        raise UserError(key, folder / SWEEP_FILE, "has no jobs")
    return Sweep(
        name=record.name or folder.absolute().name,
        command=record.command,
        config_options=record.config_options,
        parameter_keys=record.parameter_keys,
        runs=[_read_job(folder, job, record.config_options, key) for job in record.jobs],
    )


def _read_job(folder: Path, job: Job, config_options: list[str], key: str) -> Run:
    job_dir = folder / job.folder
    has_config = lexists(job_dir / CONFIG_FILE)
    run = (
        read_run(job_dir, key, root=folder) if has_config else Run(folder=job_dir, name=job.folder)
    )
    run.sweep_parameters = dict(job.dials)
    run.overrides = job.overrides
    run.config_options = config_options
    run.reported_status = job.status
    run.message = job.message
    return run
