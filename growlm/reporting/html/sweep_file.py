"""The jobs of a sweep, as its sweep.json tells of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.errors import UserError
from growlm.reporting.html.run_files import Run, read_run

SWEEP = "sweep.json"


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
    return (folder / SWEEP).is_file()


def read_sweep(folder: Path, key: str = "argument") -> Sweep:
    """Read a sweep's folder.

    Raises:
        UserError: If its file is none of ours, or no job has left anything.
    """
    path = folder / SWEEP
    try:
        record = json.loads(path.read_bytes())
        dials = [str(dial) for dial in record.get("dials", [])]
        runs = [_job(folder, job, dials) for job in record["jobs"]]
        sweep = Sweep(
            name=str(record.get("name") or folder.absolute().name),
            command=[str(override) for override in record.get("command", [])],
            dials=dials,
            runs=runs,
        )
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(key, path, f"is not what growlm writes ({type(error).__name__})") from error
    if not runs:
        raise UserError(key, path, "has no jobs")
    return sweep


def _job(folder: Path, job: dict[str, Any], dials: list[str]) -> Run:
    name = str(job.get("folder") or job["number"])
    place = folder / name
    inside = place.absolute().parent == folder.absolute()
    there = inside and (place / "config.yaml").is_file()
    run = read_run(place) if there else Run(folder=place, name=name)
    values = dict(job.get("dials") or {})
    run.dials = {dial: str(values[dial]) for dial in dials if dial in values}
    run.overrides = [str(override) for override in job.get("overrides") or []]
    run.told_status = str(job.get("status") or "pending")
    run.message = None if job.get("message") is None else str(job["message"])
    return run
