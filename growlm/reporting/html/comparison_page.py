"""What the page of several runs shows, as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growlm.reporting.html import number_format as figures
from growlm.reporting.html.curves import finite, reach, short, smooth, thin
from growlm.reporting.html.html_tables import run_table, savings_table
from growlm.reporting.html.run_page import counters, phase_starts, place
from growlm.reporting.html.savings import savings
from growlm.reporting.html.shell_commands import commands, sweep_command
from growlm.reporting.html.sweep_parameters import short_names
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run
from growlm.reporting.reading.sweep_file import Sweep

POINTS = 60_000
"""Rows that are drawn of all runs together, about."""
MOST_OF_ONE = 1000
CONFIGS = 1_000_000
"""Characters of configs, in all; the runs beyond it have theirs in their folders."""


def comparison_page(
    runs: Sequence[Run], dials: Sequence[str], title: str, beside: Path, sweep: Sweep | None
) -> dict[str, Any]:
    """Everything the page needs, ready for JSON.

    Args:
        runs: With their dials.
        dials: In order.
        title: Of the page.
        beside: The folder it will be in.
        sweep: That the runs are the jobs of; None for none.
    """
    found = savings(runs)
    rows = reach(min((len(run.history.rows) for run in runs if run.history.rows), default=0))
    return {
        "kind": "comparison",
        "title": title,
        "subtitle": f"sweep of {len(runs)} jobs" if sweep else f"{len(runs)} runs side by side",
        "strip": _strip(runs),
        "dials": [
            {"key": dial, "name": name, "values": _values(runs, dial)}
            for dial, name in short_names(dials).items()
        ],
        "smoothedOver": rows,
        "runs": [_curve(run, rows, len(runs)) for run in runs],
        "table": run_table(runs, dials, beside).to_json(),
        "savings": found
        if isinstance(found, str)
        else {
            "loss": figures.loss(found.loss),
            "measuredAs": found.measured_as,
            "references": list(found.references.values()),
            "table": savings_table(found).to_json(),
        },
        "messages": [
            {"where": run.name, "text": run.message} for run in runs if run.message is not None
        ],
        "commands": ([sweep_command(sweep.command)] if sweep else []),
        "texts": _texts(runs),
    }


def _strip(runs: Sequence[Run]) -> list[dict[str, str]]:
    finished = [run for run in runs if run.status == "finished"]
    losses = [(outcome.final_val_loss(run), run.name) for run in finished]
    best = min((pair for pair in losses if pair[0] is not None), default=(None, ""))
    jumps = [outcome.largest_jump(run) for run in runs]
    worst = max((jump for jump in jumps if jump is not None), key=abs, default=None)
    totals = {axis: [outcome.cost(run, axis) for run in runs] for axis in ("flops", "seconds")}
    sums = {axis: sum(cost for cost in costs if cost) for axis, costs in totals.items()}
    reused = sum(outcome.reused_seconds(run) for run in runs)
    whose = f"all runs; {figures.seconds(reused)} more were reused" if reused else "all runs"
    values = [
        ("runs", str(len(runs)), f"{len(finished)} finished"),
        ("lowest validation loss", figures.loss(best[0]), best[1]),
        ("largest |jump|", figures.jump(worst).lstrip("+-"), "of the loss, over all runs"),
        ("compute", figures.scaled(sums["flops"], "FLOP"), "all runs"),
        ("time", figures.seconds(sums["seconds"] - reused), f"{whose}, one after another"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in values]


def _values(runs: Sequence[Run], dial: str) -> list[dict[str, Any]]:
    """The values of a dial in order: numbers by size, words as they come."""
    shown = list(dict.fromkeys(run.dials[dial] for run in runs if dial in run.dials))
    numbers = [_number(text) for text in shown]
    if all(value is not None for value in numbers):
        pairs = sorted(zip(shown, numbers, strict=True), key=lambda pair: pair[1] or 0.0)
        return [{"text": text, "number": value} for text, value in pairs]
    return [{"text": text, "number": None} for text in shown]


def _number(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None


def _curve(run: Run, smoothed_over: int, num_runs: int) -> dict[str, Any]:
    rows = run.history.rows
    smoothed = smooth([finite(row["loss"]) for row in rows], smoothed_over, phase_starts(rows))
    drawn = thin(smoothed, phase_starts(rows), min(MOST_OF_ONE, POINTS // num_runs), 10)
    return {
        "name": run.name,
        "status": run.status,
        "dials": run.dials,
        "baseline": run.baseline.get("kind"),
        "training": {
            **counters(rows, drawn),
            "loss": [short(smoothed[index], 5) for index in drawn],
        },
        "validation": {
            **counters(run.history.validations),
            "loss": [short(finite(line["val_loss"]), 5) for line in run.history.validations],
        },
        "boundaries": [
            {
                "label": outcome.boundary_name(boundary),
                "grew": outcome.what_grew(boundary, run.config),
                "at": place(run, boundary),
            }
            for boundary in run.boundaries
        ],
        "final": {
            "training": outcome.final_loss(run),
            "validation": outcome.final_val_loss(run),
        },
    }


def _texts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Commands, last sample and config of each run, to choose from."""
    texts, room = [], CONFIGS
    for run in runs:
        room -= len(run.config_text)
        finished = run.history.finished
        texts.append(
            {
                "name": run.name,
                "commands": commands(run) if run.config else [],
                "sample": str(finished[-1].get("sample") or "") if finished else "",
                "config": run.config_text if room >= 0 else "",
            }
        )
    return texts
