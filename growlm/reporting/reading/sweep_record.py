"""Define and read `sweep.json`, which lists the jobs of a sweep and their status, without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from growlm.reporting.reading.override_text import normalize_override
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
    # A restarted job removes its folder, so the name must not lead outside the sweep's folder.
    return None if JOB_FOLDER_PATTERN.fullmatch(value) else "is not a valid job folder name"


@dataclass
class Job:
    """Job of a sweep: one run with its overrides and status."""

    number: int
    overrides: list[str]
    dials: dict[str, str]
    """Values of the swept parameters, by key."""
    folder: Annotated[str, _check_folder_name]
    """Name of the job's folder inside the sweep's folder."""
    status: Annotated[str, _check_status] = PENDING
    code: int | None = None
    message: str | None = None
    """Reason of a failure."""


@dataclass
class SweepRecord:
    """Contents of sweep.json."""

    name: str
    """Name of the phase plan."""
    command: list[str]
    """Overrides as the user gave them, without those for Hydra."""
    constants: list[str] = field(default_factory=list)
    """Overrides that all jobs share, as Hydra writes them."""
    config: str = ""
    """Checksum of the configs of all jobs."""
    jobs: list[Job] = field(default_factory=list)
    config_options: list[str] = field(default_factory=list)
    """Options that name config files of the user's own: `--config-dir DIR`, `--config-name NAME`."""

    @property
    def parameter_keys(self) -> list[str]:
        """Keys of the swept parameters, in order."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.dials))

    def matches(self, other: SweepRecord) -> bool:
        """Return whether both sweeps come from the same command with the same configuration files."""
        commands = [[normalize_override(o) for o in each.command] for each in (self, other)]
        return commands[0] == commands[1] and self.config == other.config


def read_sweep_record(folder: Path, key: str) -> SweepRecord:
    """Read the `sweep.json` of a folder.

    Args:
        folder: Folder of the sweep.
        key: Setting or argument that names the folder, for error messages.

    Raises:
        UserError: If the file cannot be read or is not a sweep record; the message says where it is wrong.
    """
    path = folder / SWEEP_FILE
    record = read_json(path, key, folder, dict[str, Any], max_bytes=MAX_INDEX_BYTES)
    record.pop("dials", None)  # repeats the parameters of the jobs
    with translate_content_errors(path, key):
        sweep: SweepRecord = parse_as(SweepRecord, record)
    return sweep
