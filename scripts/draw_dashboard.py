"""Draw the panels of docs/dashboard.md from a run: what one should see there, without W&B's site.

    python scripts/draw_dashboard.py RUN_DIR            writes docs/images/dashboard.png

The panels are those that `scripts/wandb_dashboard.py` saves in W&B. Their numbers are those that a run logs, taken
from its history by the same functions. W&B lays the panels out and draws them in its own way.
Needs `pip install -e '.[docs,dashboard]'`.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import wandb_dashboard
from wandb_dashboard import COLORS, SECTIONS, LastTable, Lines

from growlm.reporting.loggers.metric_names import (
    GROWTH_ON_LOSS_CURVE_PREFIX,
    LOSS_BY_PHASE_PREFIX,
    STEP_METRIC,
    expert_load_metric_name,
    extract_progress_metrics,
    extract_row_metrics,
)
from growlm.reporting.reading.run_files import read_run
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.optional_packages import require_package

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from PIL import Image
except ModuleNotFoundError:
    require_package("matplotlib", "'growlm[docs]'")
    raise

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "dashboard.png"
COLUMNS = 3
Rows = list[dict[str, Any]]


def read_logged_rows(run_dir: Path) -> Rows:
    """Return what a run logs, entry after entry, by metric.

    Raises:
        UserError: If the folder is not that of a run that trained.
    """
    history = read_run(run_dir, "RUN_DIR").history
    if not history.rows:
        raise UserError(
            "RUN_DIR", run_dir, "has no training history; give the folder of a run that trained"
        )
    rows: Rows = []
    for row in sorted([*history.rows, *history.validations], key=lambda each: each["time_s"]):
        metrics = extract_row_metrics(row) | extract_progress_metrics(row)
        loads = {
            expert_load_metric_name(int(layer)): load
            for layer, load in enumerate(row.get("expert_loads") or [])
        }
        rows.append(metrics | loads | {STEP_METRIC: row["global_step"]})
    for boundary in history.boundaries:
        before = [row for row in history.rows if row["phase"] == boundary["from"]]
        mark = f"{GROWTH_ON_LOSS_CURVE_PREFIX}{boundary['from']}-{boundary['to']}"
        if before:
            at = extract_progress_metrics(before[-1]) | {STEP_METRIC: before[-1]["global_step"]}
            rows.append(at | {mark: before[-1]["loss"], "growth/jump": boundary["jump"]})
    return sorted(rows, key=lambda each: each["progress/time_s"])


def select_lines(rows: Rows, panel: Lines) -> dict[str, tuple[list[float], list[float]]]:
    """Return the points of a panel's lines, by metric."""
    pattern = re.compile(panel.y if panel.y.startswith("^") else re.escape(panel.y) + "$")
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        for name, value in row.items():
            if pattern.match(name) and panel.x in row and isinstance(value, int | float):
                found[name][0].append(row[panel.x])
                found[name][1].append(value)
    return found


def draw_lines(axes: Axes, rows: Rows, panel: Lines) -> None:
    """Draw a line plot; growths are points."""
    colors = cycle(COLORS)
    for name, (x, y) in sorted(select_lines(rows, panel).items(), key=lambda item: min(item[1][0])):
        if name.startswith(GROWTH_ON_LOSS_CURVE_PREFIX):
            label = name.removeprefix(GROWTH_ON_LOSS_CURVE_PREFIX)
            axes.plot(x, y, "D", color="#444b57", markersize=5, zorder=3, label=label)
        else:
            marker = "." if len(x) < 12 else ""
            label = name.removeprefix(LOSS_BY_PHASE_PREFIX)
            axes.plot(x, y, color=next(colors), marker=marker, linewidth=1.3, label=label)
    if panel.x != STEP_METRIC:
        axes.set_xlabel(panel.x, fontsize=7)
    if len(axes.lines) > 1:
        axes.legend(fontsize=6, frameon=False)


def draw_load(axes: Axes, rows: Rows, metric: str) -> None:
    """Draw a histogram metric as a heat map over the steps."""
    logged = [(row[STEP_METRIC], row[metric]) for row in rows if metric in row]
    if logged:
        steps, loads = zip(*logged, strict=True)
        extent = (min(steps), max(steps), -0.5, len(loads[0]) - 0.5)
        axes.imshow(
            list(zip(*loads, strict=True)),
            aspect="auto",
            origin="lower",
            extent=extent,
            cmap="Blues",
            interpolation="nearest",
        )
        axes.set_ylabel("expert", fontsize=7)


def draw(rows: Rows, out: Path) -> None:
    """Draw all sections, one below the other."""
    panels = [(name, p) for name, each in SECTIONS.items() for p in each if isinstance(p, Lines)]
    tables = [p.title for each in SECTIONS.values() for p in each if isinstance(p, LastTable)]
    lines = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(lines, COLUMNS, figsize=(11, 2.2 * lines), layout="constrained")
    flat: Sequence[Axes] = list(grid.flat)
    for axes, (section, panel) in zip(flat, panels, strict=False):
        axes.set_title(f"{section}: {panel.title}", fontsize=7.5, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.y.startswith("moe/load/"):
            draw_load(axes, rows, panel.y)
        else:
            draw_lines(axes, rows, panel)
    for axes in flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(
        f"The panels of scripts/{Path(wandb_dashboard.__file__).name}, drawn by growlm from the numbers that a "
        f"run logs; not drawn: the tables {' and '.join(tables)}",
        fontsize=8,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    with Image.open(out) as image:  # few colors, so that the file is small
        small = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    small.save(out, optimize=True)


def main() -> int:
    """Draw the run of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    arguments = parser.parse_args()
    draw(read_logged_rows(arguments.run_dir), arguments.out)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
