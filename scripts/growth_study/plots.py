"""Draw the plots of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from growth_study.arms import AXES, SEEDS, Arm, Axis
from growth_study.costs import compute_seconds_at
from growth_study.findings import Findings
from growth_study.record_file import Record

BASELINES = {
    "scratch": ("#2c3e50", "from scratch"),
    "continue": ("#8e9aa6", "first model trained on"),
}
GROWN = ("#c0392b", "#e67e22")
BETTER, UNCLEAR = "#27ae60", "#7f8c8d"
UNITS = {
    "flops": (1e12, "10¹² FLOPs, the first model's included"),
    "seconds": (1.0, "seconds on one core"),
}


def draw_all(findings: Findings, folder: Path) -> list[Path]:
    """Draw the plots of everything that has finished.

    Returns:
        The files that were written.
    """
    axes = list({found.axis.name: found.axis for found in findings.axes()}.values())
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


def _draw_losses(findings: Findings, axes: Sequence[Axis], cost: str, path: Path) -> None:
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


def _draw_axis(findings: Findings, axis: Axis, cost: str, panel: Axes) -> None:
    arms = [(axis.main_arm(name), *style) for name, style in BASELINES.items()]
    for arm, color in zip(axis.grown_arms, GROWN, strict=False):
        arms.append((arm, color, f"grown after {arm.growth_share:.0%}"))
    ends: list[float] = []
    for arm, color, title in arms:
        ends += _draw_arm(findings, arm, color, title, cost, panel)
    span = max(ends) - min(ends)
    panel.set_ylim(min(ends) - 0.1 * span, max(ends) + 1.5 * span)
    panel.set(title=axis.title, xlabel=UNITS[cost][1], ylabel="validation loss")
    panel.spines[["top", "right"]].set_visible(False)


def _draw_arm(
    findings: Findings, arm: Arm, color: str, title: str, cost: str, panel: Axes
) -> list[float]:
    """Draw the final losses by length with their mean, and the training loss of the first seed's longest run."""
    unit, _ = UNITS[cost]
    runs = findings.of_arm(arm)
    shares = sorted({run["share"] for run in runs})
    groups = [[run for run in runs if run["share"] == share] for share in shares]
    costs = [mean(findings.cost(run, cost) for run in group) / unit for group in groups]
    losses = [mean(run["loss"] for run in group) for group in groups]
    if not runs:
        return []
    panel.plot(costs, losses, "o-", color=color, markersize=4, label=title)
    each = [findings.cost(run, cost) / unit for run in runs]
    panel.plot(each, [run["loss"] for run in runs], ".", color=color, markersize=3, alpha=0.5)
    for run in (run for run in groups[-1] if run["seed"] == SEEDS[0]):
        flops, y = zip(*run["curve"], strict=True)
        x = flops if cost == "flops" else compute_seconds_at(run, findings.speeds, flops)
        panel.plot([value / unit for value in x], y, color=color, linewidth=0.8, alpha=0.4)
        _mark_growths(findings, run, cost, color, panel)
    return losses


def _mark_growths(findings: Findings, run: Record, cost: str, color: str, panel: Axes) -> None:
    unit, _ = UNITS[cost]
    spent = 0.0
    growths = {boundary["to"] for boundary in run["boundaries"]}
    for phase in run["phases"]:
        if phase["name"] in growths:
            x = spent if cost == "flops" else compute_seconds_at(run, findings.speeds, [spent])[0]
            panel.axvline(x / unit, color=color, linestyle=":", linewidth=0.8)
        spent += phase["flops"]


def _draw_changes(findings: Findings, axes: Sequence[Axis], path: Path) -> None:
    rows = [(axis, change) for axis in axes for change in findings.changes(axis)]
    figure, panel = plt.subplots(figsize=(7.5, 0.26 * len(rows) + 1.2))
    for row, (_, change) in enumerate(rows):
        values = change.difference.values
        color = UNCLEAR
        if len(values) > 1 and min(values) > 0:
            color = GROWN[0]
        elif len(values) > 1 and max(values) < 0:
            color = BETTER
        panel.plot(values, [row] * len(values), "o", color=color, markersize=4, alpha=0.6)
        panel.plot([mean(values)], [row], "|", color=color, markersize=13, markeredgewidth=2)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(
        range(len(rows)), [f"{axis.title}: {change.arm.name}" for axis, change in rows]
    )
    panel.invert_yaxis()
    panel.set_xlabel(
        "final loss, minus that of the plan as it is\n"
        "a dot a seed, a bar their mean; green: better with every seed,\n"
        "red: worse with every seed, grey: neither, or one seed only"
    )
    panel.grid(axis="y", linewidth=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
