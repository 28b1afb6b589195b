"""A run as its folder tells of it: finished, unfinished or failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growlm.reporting.reading.history_reader import History, read_history
from growlm.reporting.reading.run_schema import (
    BoundarySchema,
    FunctionalCheckSchema,
    PlannedPhaseSchema,
    RunConfigSchema,
    SummarySchema,
)
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json, read_yaml, translate_content_errors
from growlm.storage.typed_values import parse_as

CONFIG_FILE = "config.yaml"


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
    sweep_parameters: dict[str, str] = field(default_factory=dict)
    """What makes it differ from the runs beside it."""
    overrides: list[str] | None = None
    """Of a sweep's job."""
    reported_status: str | None = None
    """Of a sweep's job: what the sweep says."""
    message: str | None = None
    """Of a sweep's job: what went wrong."""

    @property
    def status(self) -> str:
        """One word."""
        if self.summary is not None:
            return "finished"
        if self.reported_status is not None and self.reported_status != "finished":
            return self.reported_status
        if any(boundary.get("passed") is False for boundary in self.boundaries):
            return "failed"
        return "unfinished"

    @property
    def baseline(self) -> dict[str, Any]:
        """Its `baseline` settings; empty for a run that is none."""
        settings = self.config.get("baseline") or {}
        return settings if settings.get("of") else {}

    @property
    def plan_name(self) -> str:
        """Of its phase plan."""
        return str(self.config.get("name", "?"))

    @property
    def can_resume(self) -> bool:
        """Whether `resume=` can go on with it."""
        return self.summary is None and (self.folder / "resume" / "run.json").is_file()


def read_run(folder: Path, key: str = "argument", root: Path | None = None) -> Run:
    """Read a run's folder; only `config.yaml` must be there.

    Args:
        folder: Of the run.
        key: What the user calls it, for the message.
        root: The folder that no link may lead out of; None for the run's.

    Raises:
        UserError: If it is no run's folder, or one of its files is none of ours.
    """
    root = root or folder
    if not folder.is_dir():
        raise UserError(key, folder, "there is no such folder")
    if not lexists(folder / CONFIG_FILE):
        raise UserError(key, folder, f"is no run's folder, which has {CONFIG_FILE}, nor a sweep's")
    config, text = read_yaml(folder / CONFIG_FILE, key, root, RunConfigSchema)

    def read(name: str, kind: Any) -> Any:
        path = folder / name
        return read_json(path, key, root, kind, allow_nan=True) if lexists(path) else None

    history = read_history(folder / "checkpoints" / "training_history.jsonl", key, root)
    boundaries = read("boundaries.json", list[BoundarySchema]) or history.boundaries
    for index, boundary in enumerate(boundaries):
        functional = boundary.get("checks", {}).get("functional")
        if isinstance(functional, dict):
            place = f"[{index}].checks.functional.figures"
            with translate_content_errors(folder / "boundaries.json", key):
                parse_as(FunctionalCheckSchema, functional.get("figures", {}), place)
    return Run(
        folder=folder,
        name=folder.absolute().name,
        config=config,
        config_text=text,
        plan=read("plan.json", list[PlannedPhaseSchema]) or [],
        summary=read("summary.json", SummarySchema),
        boundaries=boundaries,
        history=history,
    )
