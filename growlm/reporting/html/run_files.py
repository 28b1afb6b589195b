"""A run as its folder tells of it: finished, unfinished or failed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from growlm.errors import UserError
from growlm.reporting.html.history import History, read_history

LARGEST_JSON = 2**28
"""Bytes. A larger one is none of ours."""
STATES = ("pending", "running", "finished", "failed", "wrong", "interrupted")
"""What a sweep says of its jobs."""


@dataclass
class Run:
    """Everything a report shows of a run."""

    folder: Path
    name: str
    """How the report calls it."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    plan: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    """None until the run has finished."""
    boundaries: list[dict[str, Any]] = field(default_factory=list)
    history: History = field(default_factory=History)
    dials: dict[str, str] = field(default_factory=dict)
    """What makes it differ from the runs beside it."""
    overrides: list[str] | None = None
    """Of a sweep's job."""
    told_status: str | None = None
    """Of a sweep's job: what the sweep says."""
    message: str | None = None
    """Of a sweep's job: what went wrong."""

    @property
    def status(self) -> str:
        """One word."""
        if self.summary is not None:
            return "finished"
        if self.told_status is not None and self.told_status != "finished":
            return self.told_status
        if any(boundary.get("passed") is False for boundary in self.boundaries):
            return "failed"
        return "unfinished"

    @property
    def baseline(self) -> dict[str, Any]:
        """Its `baseline` settings; empty for a run that is none."""
        settings = self.config.get("baseline")
        return settings if isinstance(settings, dict) and settings.get("of") else {}

    @property
    def plan_name(self) -> str:
        """Of its phase plan."""
        return str(self.config.get("name", "?"))

    @property
    def can_resume(self) -> bool:
        """Whether `resume=` can go on with it."""
        return self.summary is None and (self.folder / "resume" / "run.json").is_file()


def read_run(folder: Path, key: str = "argument") -> Run:
    """Read a run's folder; only `config.yaml` must be there.

    Args:
        folder: Of the run.
        key: What the user calls it, for the message.

    Raises:
        UserError: If it is no run's folder, or one of its files is none of ours.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise UserError(key, folder, "there is no such folder")
    if not path.is_file():
        raise UserError(key, folder, "is no run's folder, which has config.yaml, nor a sweep's")
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(key, path, f"cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(key, path, "is no run's config: it has no keys")
    history = read_history(folder / "checkpoints" / "training_history.jsonl")
    return Run(
        folder=folder,
        name=folder.absolute().name,
        config=config,
        config_text=text,
        plan=_records(folder / "plan.json", key),
        summary=_read(folder / "summary.json", dict, key),
        boundaries=_records(folder / "boundaries.json", key) or history.boundaries,
        history=history,
    )


def _records(path: Path, key: str) -> list[dict[str, Any]]:
    found = _read(path, list, key) or []
    if not all(isinstance(record, dict) for record in found):
        raise UserError(key, path, "is not what growlm writes")
    return found


def _read(path: Path, kind: type, key: str) -> Any:
    """JSON of a file; None where there is none."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(key, path, f"is larger than {LARGEST_JSON:,} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(key, path, f"cannot be read: {_first_line(error)}") from error
    if not isinstance(value, kind):
        raise UserError(key, path, "is not what growlm writes")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
