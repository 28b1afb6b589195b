"""The study's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from growth_study.arms import AXES, Axis
from growth_study.costs import seconds_after
from growth_study.findings import AxisFindings, Findings, main_arm

LOOKS = {
    "grown": ("#c0392b", "grown"),
    "scratch": ("#2c3e50", "from scratch"),
    "continue": ("#8e9aa6", "first model trained on"),
}
UNITS = {
    "flops": (1e12, "10¹² FLOPs, the first model's included"),
    "seconds": (1.0, "seconds on one core"),
}


def draw_all(findings: Findings, folder: Path) -> list[Path]:
    """Write them; only what has finished is drawn.

    Returns:
        The files.
    """
    axes = findings.axes()
    if not axes:
        return []
    files = []
    for cost in UNITS:
        files.append(folder / f"loss_against_{cost}.png")
        _draw_losses(findings, axes, cost, files[-1])
    changed = [axis for axis in AXES if findings.changes(axis)]
    if changed:
        files.append(folder / "changes.png")
        _draw_changes(findings, changed, files[-1])
    return files


def _draw_losses(findings: Findings, axes: Sequence[AxisFindings], cost: str, path: Path) -> None:
    columns = 2 if len(axes) > 1 else 1
    rows = -(-len(axes) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False)
    for panel, axis in zip(panels.flat, axes, strict=False):
        _draw_axis(findings, axis, cost, panel)
    for empty in panels.flat[len(axes) :]:
        empty.set_visible(False)
    panels.flat[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_axis(findings: Findings, found: AxisFindings, cost: str, panel: Axes) -> None:
    unit, label = UNITS[cost]
    lowest, highest = [], []
    for name, (colour, title) in LOOKS.items():
        runs = findings.of_arm(main_arm(found.axis, name))
        shares = sorted({run["share"] for run in runs})
        at = [[r for r in runs if r["share"] == share] for share in shares]
        costs = [mean(findings.cost(r, cost) for r in group) / unit for group in at]
        losses = [mean(r["loss"] for r in group) for group in at]
        panel.plot(costs, losses, "o-", color=colour, markersize=4, label=title)
        for run in runs:
            panel.plot(
                findings.cost(run, cost) / unit,
                run["loss"],
                ".",
                color=colour,
                markersize=3,
                alpha=0.5,
            )
        lowest.append(min(losses))
        highest.append(max(losses))
        longest = [r for r in runs if r["seed"] == 0 and r["share"] == shares[-1]]
        for run in longest:
            flops = [point[0] for point in run["curve"]]
            x = flops if cost == "flops" else seconds_after(run, findings.speeds, flops)
            y = [point[1] for point in run["curve"]]
            panel.plot([value / unit for value in x], y, color=colour, linewidth=0.8, alpha=0.5)
            if name == "grown":
                _mark_growths(findings, run, cost, panel)
    room = max(highest) - min(lowest)
    panel.set_ylim(min(lowest) - 0.15 * room, max(highest) + 2.5 * room)
    panel.set(title=found.axis.title, xlabel=label, ylabel="validation loss")
    panel.spines[["top", "right"]].set_visible(False)


def _mark_growths(findings: Findings, run: dict, cost: str, panel: Axes) -> None:
    unit, _ = UNITS[cost]
    spent = 0.0
    growths = {boundary["to"] for boundary in run["boundaries"]}
    for phase in run["phases"]:
        if phase["name"] in growths:
            x = spent if cost == "flops" else seconds_after(run, findings.speeds, [spent])[0]
            panel.axvline(x / unit, color="black", linestyle=":", linewidth=0.8)
        spent += phase["flops"]


def _draw_changes(findings: Findings, axes: Sequence[Axis], path: Path) -> None:
    rows = [(axis, change) for axis in axes for change in findings.changes(axis)]
    figure, panel = plt.subplots(figsize=(7.5, 0.26 * len(rows) + 1.2))
    for place, (_, change) in enumerate(rows):
        values = change.difference.values
        colour = LOOKS["grown"][0] if change.difference.mean > 0 else "#27ae60"
        panel.plot(values, [place] * len(values), "o", color=colour, markersize=5)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(
        range(len(rows)), [f"{axis.title}: {change.arm.name}" for axis, change in rows]
    )
    panel.invert_yaxis()
    panel.set_xlabel("final loss, less that of the plan as it is")
    panel.grid(axis="y", linewidth=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
