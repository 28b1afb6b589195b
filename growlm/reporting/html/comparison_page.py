"""Build the data of the page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from growlm.reporting.html.curves import (
    downsample,
    finite_or_none,
    round_significant,
    smooth_losses,
    smoothing_radius,
)
from growlm.reporting.html.final_losses import build_final_losses, order_values
from growlm.reporting.html.html_tables import ReportTable, build_run_table, build_savings_table
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
BOUNDARY_ROWS = 10
"""Rows at either end of a phase that are all plotted."""
MAX_COLUMNS = 11
"""Largest number of columns of the table of runs, with which it fits on a small desktop screen."""
FOLDED_COLUMNS = ("time", "FLOPs", "tokens", "parameters")
"""Columns of the table of runs that a sentence replaces where all runs have the same value."""
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
    names = shorten_keys(parameter_keys)
    most_phases = max((len(find_phase_starts(run.history.rows)) for run in runs), default=0)
    num_points = min(MAX_POINTS_PER_RUN, MAX_POINTS // len(runs)) // max(1, most_phases)
    table = build_run_table(runs, parameter_keys, report_dir)
    same_in_all = _fold_equal_columns(table)
    _drop_jumps_that_do_not_fit(table)
    return {
        "kind": "comparison",
        "title": title,
        "subtitle": f"sweep of {len(runs)} jobs" if sweep else f"{len(runs)} runs side by side",
        "strip": _headline_figures(runs),
        "dials": [
            {
                "key": key,
                "name": name,
                "values": order_values(
                    [r.sweep_parameters[key] for r in runs if key in r.sweep_parameters]
                ),
            }
            for key, name in names.items()
        ],
        "smoothedOver": radius,
        "runs": [_run_curves(run, radius, num_points) for run in runs],
        "growths": _group_growths(runs),
        "finalLosses": build_final_losses(runs, names),
        "table": table.to_json(),
        "sameInAll": same_in_all,
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
        "commands": ([build_sweep_command(sweep.command, sweep.config_options)] if sweep else []),
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


def _run_curves(run: Run, radius: int, num_points: int) -> dict[str, Any]:
    """Return the curves of a run; those of equal phases of other runs have the same points.

    Args:
        run: Run to show.
        radius: Rows on either side that a training loss is averaged over.
        num_points: Approximate limit on the plotted rows of a phase.
    """
    rows = run.history.rows
    starts = find_phase_starts(rows)
    smoothed = smooth_losses(
        [finite_or_none(row["loss"]) for row in rows],
        radius,
        starts,
        [row["global_step"] for row in rows],
    )
    plotted: list[int] = []
    for first, end in pairwise([*starts, len(rows)]):
        chosen = downsample(smoothed[first:end], [0], num_points, 0)
        near = {*range(min(BOUNDARY_ROWS, end - first))}
        near |= {end - first - 1 - index for index in near}
        plotted += [first + index for index in sorted(near.union(chosen))]
    validations = run.history.validations
    return {
        "name": run.name,
        "status": run.status,
        "dials": run.sweep_parameters,
        "baseline": run.baseline.get("kind"),
        "training": {
            **counter_series(rows, plotted),
            "loss": [round_significant(smoothed[index], 5) for index in plotted],
            "phases": [str(rows[index]["phase"]) for index in plotted],
        },
        "validation": {
            **counter_series(validations),
            "loss": [
                round_significant(finite_or_none(line["val_loss"]), 5) for line in validations
            ],
            "phases": [str(line["phase"]) for line in validations],
        },
    }


def _group_growths(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the growths of all runs, those after the same phase and step in one group.

    Returns:
        For each group `label`, what `grew`, the phase that it is `after`, the `step`, whether its checks `passed`,
        and the indices of its `runs`.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, run in enumerate(runs):
        for boundary in run.boundaries:
            at = boundary_position(run, boundary)
            key = (
                outcome.format_boundary_name(boundary),
                outcome.describe_growth(boundary, run.config),
                str(boundary.get("from")),
                None if at is None else at["step"],
                boundary.get("passed") is not False,
            )
            groups.setdefault(key, []).append(index)
    names = ("label", "grew", "after", "step", "passed")
    order = {key[0]: index for index, key in reversed(list(enumerate(groups)))}
    ordered = sorted(groups, key=lambda key: (order[key[0]], key[3] or 0))
    return [dict(zip(names, key, strict=True)) | {"runs": groups[key]} for key in ordered]


def _fold_equal_columns(table: ReportTable) -> str:
    """Remove the result columns in which all runs have the same text, and return them as a sentence."""
    if len(table.rows) < 2:
        return ""
    titles = [column["title"] for column in table.columns]
    equal = [
        index
        for index, title in enumerate(titles)
        if title in FOLDED_COLUMNS
        and len({row[index]["text"] for row in table.rows}) == 1
        and table.rows[0][index]["sort"] is not None
    ]
    values = [f"{titles[index]} {table.rows[0][index]['text']}" for index in equal]
    table.keep_columns([index for index in range(len(titles)) if index not in equal])
    return f"The same in all runs: {', '.join(values)}." if values else ""


def _drop_jumps_that_do_not_fit(table: ReportTable) -> None:
    """Remove the jump of each growth from a wide table; the largest one stays, and each run's report has all."""
    if len(table.columns) > MAX_COLUMNS:
        titles = [column["title"] for column in table.columns]
        table.keep_columns(
            [index for index, title in enumerate(titles) if not title.startswith("jump ")]
        )


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
