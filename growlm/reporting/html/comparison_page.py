"""What the page of several runs shows, as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growlm.reporting.html import number_format as figures
from growlm.reporting.html.curves import (
    downsample,
    finite_or_none,
    round_significant,
    smooth_losses,
    smoothing_radius,
)
from growlm.reporting.html.html_tables import build_run_table, build_savings_table
from growlm.reporting.html.run_page import boundary_position, counter_series, find_phase_starts
from growlm.reporting.html.savings import compute_savings
from growlm.reporting.html.shell_commands import build_run_commands, build_sweep_command
from growlm.reporting.html.sweep_parameters import shorten_keys
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run
from growlm.reporting.reading.sweep_file import Sweep

MAX_POINTS = 60_000
"""Rows that are drawn of all runs together, about."""
MAX_POINTS_PER_RUN = 1000
MAX_CONFIG_CHARACTERS = 1_000_000
"""Characters of configs, in all; the runs beyond it have theirs in their folders."""


def build_comparison_page(
    runs: Sequence[Run],
    parameter_keys: Sequence[str],
    title: str,
    report_dir: Path,
    sweep: Sweep | None,
) -> dict[str, Any]:
    """Everything the page needs, ready for JSON.

    Args:
        runs: With their dials.
        dials: In order.
        title: Of the page.
        beside: The folder it will be in.
        sweep: That the runs are the jobs of; None for none.
    """
    found = compute_savings(runs)
    rows = smoothing_radius(
        min((len(run.history.rows) for run in runs if run.history.rows), default=0)
    )
    return {
        "kind": "comparison",
        "title": title,
        "subtitle": f"sweep of {len(runs)} jobs" if sweep else f"{len(runs)} runs side by side",
        "strip": _headline_figures(runs),
        "dials": [
            {"key": dial, "name": name, "values": _parameter_values(runs, dial)}
            for dial, name in shorten_keys(parameter_keys).items()
        ],
        "smoothedOver": rows,
        "runs": [_run_curves(run, rows, len(runs)) for run in runs],
        "table": build_run_table(runs, parameter_keys, report_dir).to_json(),
        "savings": found
        if isinstance(found, str)
        else {
            "loss": figures.format_loss(found.target_loss),
            "measuredAs": found.loss_description,
            "references": list(found.references.values()),
            "table": build_savings_table(found).to_json(),
        },
        "messages": [
            {"where": run.name, "text": run.message} for run in runs if run.message is not None
        ],
        "commands": ([build_sweep_command(sweep.command)] if sweep else []),
        "texts": _run_texts(runs),
    }


def _headline_figures(runs: Sequence[Run]) -> list[dict[str, str]]:
    finished = [run for run in runs if run.status == "finished"]
    losses = [(outcome.final_val_loss(run), run.name) for run in finished]
    best = min((pair for pair in losses if pair[0] is not None), default=(None, ""))
    jumps = [outcome.largest_jump(run) for run in runs]
    worst = max((jump for jump in jumps if jump is not None), key=abs, default=None)
    totals = {
        axis: [outcome.total_cost(run, axis) for run in runs] for axis in ("flops", "seconds")
    }
    sums = {axis: sum(cost for cost in costs if cost) for axis, costs in totals.items()}
    reused = sum(outcome.reused_seconds(run) for run in runs)
    whose = f"all runs; {figures.format_seconds(reused)} more were reused" if reused else "all runs"
    values = [
        ("runs", str(len(runs)), f"{len(finished)} finished"),
        ("lowest validation loss", figures.format_loss(best[0]), best[1]),
        ("largest |jump|", figures.format_jump(worst).lstrip("+-"), "of the loss, over all runs"),
        ("compute", figures.format_scaled(sums["flops"], "FLOP"), "all runs"),
        ("time", figures.format_seconds(sums["seconds"] - reused), f"{whose}, one after another"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in values]


def _parameter_values(runs: Sequence[Run], key: str) -> list[dict[str, Any]]:
    """The values of a dial in order: numbers by size, words as they come."""
    shown = list(
        dict.fromkeys(run.sweep_parameters[key] for run in runs if key in run.sweep_parameters)
    )
    numbers = [_parse_number(text) for text in shown]
    if all(value is not None for value in numbers):
        pairs = sorted(zip(shown, numbers, strict=True), key=lambda pair: pair[1] or 0.0)
        return [{"text": text, "number": value} for text, value in pairs]
    return [{"text": text, "number": None} for text in shown]


def _parse_number(text: str) -> float | None:
    try:
        return finite_or_none(float(text))
    except ValueError:
        return None


def _run_curves(run: Run, smoothed_over: int, num_runs: int) -> dict[str, Any]:
    rows = run.history.rows
    smoothed = smooth_losses(
        [finite_or_none(row["loss"]) for row in rows], smoothed_over, find_phase_starts(rows)
    )
    drawn = downsample(
        smoothed, find_phase_starts(rows), min(MAX_POINTS_PER_RUN, MAX_POINTS // num_runs), 10
    )
    return {
        "name": run.name,
        "status": run.status,
        "dials": run.sweep_parameters,
        "baseline": run.baseline.get("kind"),
        "training": {
            **counter_series(rows, drawn),
            "loss": [round_significant(smoothed[index], 5) for index in drawn],
        },
        "validation": {
            **counter_series(run.history.validations),
            "loss": [
                round_significant(finite_or_none(line["val_loss"]), 5)
                for line in run.history.validations
            ],
        },
        "boundaries": [
            {
                "label": outcome.format_boundary_name(boundary),
                "grew": outcome.describe_growth(boundary, run.config),
                "at": boundary_position(run, boundary),
            }
            for boundary in run.boundaries
        ],
        "final": {
            "training": outcome.final_loss(run),
            "validation": outcome.final_val_loss(run),
        },
    }


def _run_texts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Commands, last sample and config of each run, to choose from."""
    texts, room = [], MAX_CONFIG_CHARACTERS
    for run in runs:
        room -= len(run.config_text)
        finished = run.history.finished_phases
        texts.append(
            {
                "name": run.name,
                "commands": build_run_commands(run) if run.config else [],
                "sample": str(finished[-1].get("sample") or "") if finished else "",
                "config": run.config_text if room >= 0 else "",
            }
        )
    return texts
