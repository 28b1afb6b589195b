"""Create the dashboard of docs/dashboard.md in W&B, as a new workspace in your project.

    python scripts/wandb_dashboard.py outputs/2026-01-31/12-00-00_quickstart_0
    python scripts/wandb_dashboard.py --project growlm --entity my_team outputs/2026-01-31/*_sweep/*/
    python scripts/wandb_dashboard.py --dry-run          (prints what it would save; connects to nothing)

This takes seconds and needs `pip install -e '.[dashboard]'` and `wandb login`. W&B stores colors by run and line,
so only the runs whose folders are given get a color for each phase, and points for growths. Every call saves a new
workspace.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from wandb.errors import Error

from growlm.reporting.loggers.metric_names import (
    BOUNDARY_TABLE,
    GROWTH_ON_LOSS_CURVE_PREFIX,
    LOSS_BY_PHASE_PREFIX,
    SAMPLE_TABLE,
    STEP_METRIC,
    expert_load_metric_name,
)
from growlm.reporting.loggers.wandb_login import has_wandb_login
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.optional_packages import require_package
from growlm.storage.input_files import read_yaml, translate_content_errors
from growlm.storage.typed_values import parse_as

try:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces
except ModuleNotFoundError:
    require_package("wandb_workspaces", "'growlm[dashboard]'")
    raise

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors of the phases, in order, which color-blind readers can tell apart too."""
GROWTHS = f"{GROWTH_ON_LOSS_CURVE_PREFIX}.*"
LOSS_AND_GROWTHS = f"^(train/loss|{GROWTHS})$"


@dataclass(frozen=True)
class Lines:
    """A line plot."""

    title: str
    y: str
    """A metric or, if it begins with ^, a regular expression for several."""
    x: str = STEP_METRIC


@dataclass(frozen=True)
class LastTable:
    """A panel with the newest table that was logged under the name `title`."""

    title: str


Panel = Lines | LastTable

SECTIONS: dict[str, list[Panel]] = {
    "Boundaries": [
        Lines("Loss, a color for each phase", f"^({LOSS_BY_PHASE_PREFIX}.*|{GROWTHS})$"),
        Lines("Loss and growths, a color for each run", LOSS_AND_GROWTHS),
        Lines("Validation loss", "val/loss"),
        Lines("Phase", "phase/index"),
        Lines("Jump at each growth", "growth/jump"),
        LastTable(BOUNDARY_TABLE),
        LastTable(SAMPLE_TABLE),
    ],
    "Loss over other axes": [
        Lines("Loss over tokens", LOSS_AND_GROWTHS, "progress/tokens"),
        Lines("Loss over FLOPs", LOSS_AND_GROWTHS, "progress/flops"),
        Lines("Loss over seconds", LOSS_AND_GROWTHS, "progress/time_s"),
    ],
    "Routers": [
        Lines("Load of the first layer, a bin for each expert", expert_load_metric_name(0)),
        Lines("Evenness of the load", "moe/load_entropy"),
        Lines("Largest load", "moe/max_load"),
        Lines("Dead experts", "moe/dead_experts"),
    ],
}
"""Panels that docs/dashboard.md describes; below them, W&B adds panels for all other keys."""


@dataclass(frozen=True)
class Run:
    """A run in W&B."""

    wandb_id: str
    phases: list[str]

    @staticmethod
    def from_folder(folder: Path) -> Run:
        """Read the W&B id and the phases of a run from its folder.

        Raises:
            ValueError: If the folder is not that of a run, or the run was not logged to W&B.
        """
        files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
        if not files or not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder} is not the folder of a run with logger=wandb")
        kind = dict[str, Any]
        config, _ = read_yaml(folder / "config.yaml", "run", folder, kind)
        with translate_content_errors(folder / "config.yaml", "run"):
            phases = parse_as(kind, config.get("phases"), "phases")
        return Run(files[0].stem.removeprefix("run-"), list(phases))

    def colors(self) -> dict[str, str]:
        """Return the color of the line of each phase."""
        return {
            f"{self.wandb_id}:{LOSS_BY_PHASE_PREFIX}{phase}": color
            for phase, color in zip(self.phases, cycle(COLORS), strict=False)
        }

    def marks(self) -> dict[str, str]:
        """Return the marks that show growths as points."""
        return {
            f"{self.wandb_id}:{GROWTH_ON_LOSS_CURVE_PREFIX}{before}-{after}": "points"
            for before, after in pairwise(self.phases)
        }


def main() -> int:
    """Save the workspace, or print it.

    Returns:
        The exit code: 0 on success, 1 if W&B rejected the workspace, 2 if not logged in or a folder is not that of
        a run.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="*", type=Path, help="folders of the runs to color by phase"
    )
    parser.add_argument("--project", default="growlm", help="as in logger.project")
    parser.add_argument("--entity", help="as in logger.entity; else your default")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON")
    arguments = parser.parse_args()
    try:
        runs = [Run.from_folder(folder) for folder in arguments.folders]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.dry_run:
        dashboard = workspace("nobody", arguments.project, runs)
        print(
            dashboard._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2)
        )
        return 0
    if not has_wandb_login():
        print("Not logged in to W&B: `wandb login` first, or see --dry-run", file=sys.stderr)
        return 2
    try:
        entity = arguments.entity or default_entity()
        workspace(entity, arguments.project, runs).save()  # prints its address
    except (Error, ValueError) as error:
        print(f"W&B rejected the workspace: {error}", file=sys.stderr)
        return 1
    return 0


def workspace(entity: str, project: str, runs: Sequence[Run]) -> workspaces.Workspace:
    """Return the W&B workspace with all panels."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Growth boundaries",
        sections=[
            workspaces.Section(name=name, panels=[as_panel(p, runs) for p in panels], is_open=True)
            for name, panels in SECTIONS.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP_METRIC),
        auto_generate_panels=True,
    )


def as_panel(
    panel: Panel, runs: Sequence[Run]
) -> reports.LinePlot | reports.WeavePanelSummaryTable:
    """Return a panel as an object of W&B's library."""
    match panel:
        case LastTable(title):
            return reports.WeavePanelSummaryTable(table_name=title)
        case Lines(title, y, x) if y.startswith("^"):
            return reports.LinePlot(
                title=title,
                x=x,
                metric_regex=y,
                line_colors={key: color for run in runs for key, color in run.colors().items()},
                line_marks={key: mark for run in runs for key, mark in run.marks().items()},
            )
        case Lines(title, y, x):
            return reports.LinePlot(title=title, x=x, y=[y])


def default_entity() -> str:
    """Return the entity that W&B uses by default for the user who is logged in."""
    import wandb

    return wandb.Api().default_entity


if __name__ == "__main__":
    run_main_and_exit(main)
