"""Build the data of the page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from growlm.reporting.reading.sweep_runs import Sweep
from growlm.runtime import number_format

MAX_POINTS = 60_000
"""Approximate limit on the plotted rows of all runs together."""
MAX_POINTS_PER_RUN = 1000
MAX_CONFIG_CHARACTERS = 1_000_000
"""Total characters of configs on the page; the configs of further runs are left out."""


def build_comparison_page(
    runs: Sequence[Run],
    parameter_keys: Sequence[str],
    title: str,
    report_dir: Path,
    sweep: Sweep | None,
) -> dict[str, Any]:
    """Return everything the page needs, ready for JSON.

    Args:
        runs: Runs with their `sweep_parameters`.
        parameter_keys: Keys of the sweep parameters, in order.
        title: Title of the page.
        report_dir: Folder that the page is written to, for links to the runs' own reports.
        sweep: Sweep whose jobs the runs are; None for runs that are not a sweep.
    """
    savings = compute_savings(runs)
    radius = smoothing_radius(
        min((len(run.history.rows) for run in runs if run.history.rows), default=0)
    )
    return {
        "kind": "comparison",
        "title": title,
        "subtitle": f"sweep of {len(runs)} jobs" if sweep else f"{len(runs)} runs side by side",
        "strip": _headline_figures(runs),
        "dials": [
            {"key": key, "name": name, "values": _parameter_values(runs, key)}
            for key, name in shorten_keys(parameter_keys).items()
        ],
        "smoothedOver": radius,
        "runs": [_run_curves(run, radius, len(runs)) for run in runs],
        "table": build_run_table(runs, parameter_keys, report_dir).to_json(),
        "savings": savings
        if isinstance(savings, str)
        else {
            "loss": number_format.format_loss(savings.target_loss),
            "measuredAs": savings.loss_description,
            "references": list(savings.references.values()),
            "table": build_savings_table(savings).to_json(),
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
    scope = (
        f"all runs; {number_format.format_seconds(reused)} more were reused"
        if reused
        else "all runs"
    )
    values = [
        ("runs", str(len(runs)), f"{len(finished)} finished"),
        ("lowest validation loss", number_format.format_loss(best[0]), best[1]),
        (
            "largest |jump|",
            number_format.format_jump(worst).lstrip("+-"),
            "of the loss, over all runs",
        ),
        ("compute", number_format.format_flops(sums["flops"]), "all runs"),
        (
            "time",
            number_format.format_seconds(sums["seconds"] - reused),
            f"{scope}, one after another",
        ),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in values]


def _parameter_values(runs: Sequence[Run], key: str) -> list[dict[str, Any]]:
    """Return the values of a sweep parameter: numbers in ascending order, other values in order of appearance."""
    values = list(
        dict.fromkeys(run.sweep_parameters[key] for run in runs if key in run.sweep_parameters)
    )
    numbers = [_parse_number(text) for text in values]
    if all(value is not None for value in numbers):
        pairs = sorted(zip(values, numbers, strict=True), key=lambda pair: pair[1] or 0.0)
        return [{"text": text, "number": value} for text, value in pairs]
    return [{"text": text, "number": None} for text in values]


def _parse_number(text: str) -> float | None:
    try:
        return finite_or_none(float(text))
    except ValueError:
        return None


def _run_curves(run: Run, radius: int, num_runs: int) -> dict[str, Any]:
    rows = run.history.rows
    smoothed = smooth_losses(
        [finite_or_none(row["loss"]) for row in rows],
        radius,
        find_phase_starts(rows),
        [row["global_step"] for row in rows],
    )
    plotted = downsample(
        smoothed, find_phase_starts(rows), min(MAX_POINTS_PER_RUN, MAX_POINTS // num_runs), 10
    )
    return {
        "name": run.name,
        "status": run.status,
        "dials": run.sweep_parameters,
        "baseline": run.baseline.get("kind"),
        "training": {
            **counter_series(rows, plotted),
            "loss": [round_significant(smoothed[index], 5) for index in plotted],
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
    """Return the commands, the last sample and the config of each run."""
    texts, characters_left = [], MAX_CONFIG_CHARACTERS
    for run in runs:
        characters_left -= len(run.config_text)
        finished = run.history.finished_phases
        texts.append(
            {
                "name": run.name,
                "commands": build_run_commands(run) if run.config else [],
                "sample": str(finished[-1].get("sample") or "") if finished else "",
                "config": run.config_text if characters_left >= 0 else "",
            }
        )
    return texts
