"""What `sweep.json` holds: which jobs a sweep has, and how far each has come. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from growlm.storage.input_files import MAX_INDEX_BYTES, read_json, translate_content_errors
from growlm.storage.typed_values import parse_as

SWEEP_FILE = "sweep.json"
PENDING, RUNNING, FINISHED = "pending", "running", "finished"
INTERRUPTED, WRONG, FAILED = "interrupted", "wrong", "failed"
JOB_STATUSES = (PENDING, RUNNING, FINISHED, FAILED, WRONG, INTERRUPTED)
JOB_FOLDER_PATTERN = re.compile(r"[\w=-][\w.=-]*")


def _check_status(value: str) -> str | None:
    return None if value in JOB_STATUSES else f"must be one of {', '.join(JOB_STATUSES)}"


def _check_folder_name(value: str) -> str | None:
    # Folders of jobs are removed where a job begins anew.
    return None if JOB_FOLDER_PATTERN.fullmatch(value) else "is no name of a job's folder"


@dataclass
class Job:
    """A run of a sweep."""

    number: int
    overrides: list[str]
    dials: dict[str, str]
    """What this job sets in its own way, by key."""
    folder: Annotated[str, _check_folder_name]
    """In the sweep's folder."""
    status: Annotated[str, _check_status] = PENDING
    code: int | None = None
    message: str | None = None
    """Why it failed."""


@dataclass
class SweepRecord:
    """The contents of sweep.json."""

    name: str
    """Of the plan."""
    command: list[str]
    """The overrides, as they were given, without those for Hydra."""
    constants: list[str] = field(default_factory=list)
    """Those that all jobs have, as Hydra writes them."""
    config: str = ""
    """Checksum of all jobs' configs."""
    jobs: list[Job] = field(default_factory=list)

    @property
    def parameter_keys(self) -> list[str]:
        """The keys in which jobs differ."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.dials))

    def matches(self, other: SweepRecord) -> bool:
        """Whether both are made by the same command with the same configuration files."""
        return (self.command, self.config) == (other.command, other.config)


def read_sweep_record(folder: Path, key: str) -> SweepRecord:
    """Read `sweep.json` of a folder.

    Args:
        folder: Of the sweep.
        key: What the user calls it, for messages.

    Raises:
        UserError: If it cannot be read, or is no record of a sweep; with the place in it.
    """
    path = folder / SWEEP_FILE
    record = read_json(path, key, folder, dict[str, Any], max_bytes=MAX_INDEX_BYTES)
    record.pop("dials", None)  # said again by the jobs
    with translate_content_errors(path, key):
        sweep: SweepRecord = parse_as(SweepRecord, record)
    return sweep
