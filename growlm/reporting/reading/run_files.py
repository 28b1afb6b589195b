"""Read the folder of a finished, unfinished or failed run."""

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
    SessionSchema,
    SummarySchema,
)
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json, read_yaml, translate_content_errors
from growlm.storage.typed_values import parse_as

CONFIG_FILE = "config.yaml"


@dataclass
class Run:
    """Contents of a run's folder that a report shows."""

    folder: Path
    name: str
    """Name of the run in the report."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    plan: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    """Contents of summary.json; None until the run has finished."""
    boundaries: list[dict[str, Any]] = field(default_factory=list)
    history: History = field(default_factory=History)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Contents of provenance.json: the run's start and its resumes; empty for older runs."""
    sweep_parameters: dict[str, str] = field(default_factory=dict)
    """Settings that distinguish this run from the others in a comparison, by key."""
    overrides: list[str] | None = None
    """Overrides of a sweep job; None for a single run."""
    config_options: list[str] = field(default_factory=list)
    """Options with which a sweep names config files of the user's own."""
    reported_status: str | None = None
    """Status of a sweep job according to sweep.json; None for a single run."""
    message: str | None = None
    """Error message of a sweep job; None if there is none."""

    @property
    def status(self) -> str:
        """Status in one word: `finished`, `failed`, `unfinished`, or the status that the sweep recorded."""
        if self.summary is not None:
            return "finished"
        if self.reported_status is not None and self.reported_status != "finished":
            return self.reported_status
        if any(boundary.get("passed") is False for boundary in self.boundaries):
            return "failed"
        return "unfinished"

    @property
    def baseline(self) -> dict[str, Any]:
        """`baseline` settings of the config; empty for a run that is not a baseline."""
        settings = self.config.get("baseline") or {}
        return settings if settings.get("of") else {}

    @property
    def plan_name(self) -> str:
        """Name of the phase plan."""
        return str(self.config.get("name", "?"))

    @property
    def can_resume(self) -> bool:
        """Whether `resume=` can continue the run."""
        return self.summary is None and (self.folder / "resume" / "run.json").is_file()


def read_run(folder: Path, key: str = "argument", root: Path | None = None) -> Run:
    """Read a run's folder; only `config.yaml` must be there.

    Args:
        folder: Folder of the run.
        key: Setting or argument that names the folder, for error messages.
        root: Folder that symbolic links must not leave; None for the run's folder.

    Raises:
        UserError: If `folder` is not a run folder, or one of its files was not written by growlm.
    """
    root = root or folder
    if not folder.is_dir():
        raise UserError(key, folder, "there is no such folder")
    if not lexists(folder / CONFIG_FILE):
        raise UserError(
            key, folder, f"is neither a run folder (no {CONFIG_FILE}) nor a sweep folder"
        )
    config, text = read_yaml(folder / CONFIG_FILE, key, root, RunConfigSchema)

    def read(name: str, kind: Any) -> Any:
        path = folder / name
        return read_json(path, key, root, kind, allow_nan=True) if lexists(path) else None

    history = read_history(folder / "checkpoints" / "training_history.jsonl", key, root)
    boundaries = read("boundaries.json", list[BoundarySchema]) or history.boundaries
    for index, boundary in enumerate(boundaries):
        functional = boundary.get("checks", {}).get("functional")
        if isinstance(functional, dict):
            location = f"[{index}].checks.functional.figures"
            with translate_content_errors(folder / "boundaries.json", key):
                parse_as(FunctionalCheckSchema, functional.get("figures", {}), location)
    return Run(
        folder=folder,
        name=folder.absolute().name,
        config=config,
        config_text=text,
        plan=read("plan.json", list[PlannedPhaseSchema]) or [],
        summary=read("summary.json", SummarySchema),
        boundaries=boundaries,
        history=history,
        sessions=read("provenance.json", list[SessionSchema]) or [],
    )
