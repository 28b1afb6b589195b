"""What `sweep.json` holds: which jobs a sweep has, and how far each has come. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from growlm.storage.input_files import LARGEST_INDEX, read_json, wrong_content
from growlm.storage.typed_values import typed

RECORD = "sweep.json"
PENDING, RUNNING, FINISHED = "pending", "running", "finished"
INTERRUPTED, WRONG, FAILED = "interrupted", "wrong", "failed"
STATES = (PENDING, RUNNING, FINISHED, FAILED, WRONG, INTERRUPTED)
JOB_FOLDER = re.compile(r"[\w=-][\w.=-]*")


def _state(value: str) -> str | None:
    return None if value in STATES else f"must be one of {', '.join(STATES)}"


def _folder_name(value: str) -> str | None:
    # Folders of jobs are removed where a job begins anew.
    return None if JOB_FOLDER.fullmatch(value) else "is no name of a job's folder"


@dataclass
class Job:
    """A run of a sweep."""

    number: int
    overrides: list[str]
    dials: dict[str, str]
    """What this job sets in its own way, by key."""
    folder: Annotated[str, _folder_name]
    """In the sweep's folder."""
    status: Annotated[str, _state] = PENDING
    code: int | None = None
    message: str | None = None
    """Why it failed."""


@dataclass
class Sweep:
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
    def dials(self) -> list[str]:
        """The keys in which jobs differ."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.dials))

    def same_as(self, other: Sweep) -> bool:
        """Whether both are made by the same command with the same configuration files."""
        return (self.command, self.config) == (other.command, other.config)


def read_record(folder: Path, key: str) -> Sweep:
    """Read `sweep.json` of a folder.

    Args:
        folder: Of the sweep.
        key: What the user calls it, for messages.

    Raises:
        UserError: If it cannot be read, or is no record of a sweep; with the place in it.
    """
    path = folder / RECORD
    record = read_json(path, key, folder, dict[str, Any], limit=LARGEST_INDEX)
    record.pop("dials", None)  # said again by the jobs
    with wrong_content(path, key):
        sweep: Sweep = typed(Sweep, record)
    return sweep
