"""Compute the load of each expert over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from growlm.reporting.html.curves import finite_or_none, round_significant
from growlm.reporting.html.html_tables import ReportTable, make_columns, number_cell, text_cell
from growlm.reporting.reading.history_reader import COUNTER_FIELDS, HistoryLine
from growlm.reporting.reading.run_files import Run
from growlm.runtime.number_format import MISSING, format_magnitude

MAX_INTERVALS = 200
"""Largest number of time intervals plotted for a run."""
MAX_VALUES = 150_000
"""Largest number of plotted values: intervals x layers x experts."""


def build_router_load(run: Run) -> list[dict[str, Any]]:
    """Return the mean expert loads of each phase with experts, in time intervals.

    Returns:
        For each phase: `phase`, `experts`, `edges` of the intervals by axis (one more than intervals) and `loads`
        as [layer][expert][interval] in percent of an even share: 100 is the load of the average expert.
    """
    phases: dict[str, list[HistoryLine]] = {}
    for row in run.history.rows:
        if _is_load_matrix(row.get("expert_loads")):
            phases.setdefault(str(row["phase"]), []).append(row)
    if not phases:
        return []
    total = sum(len(rows) for rows in phases.values())
    largest = max(
        len(rows[0]["expert_loads"]) * len(rows[0]["expert_loads"][0]) for rows in phases.values()
    )
    max_intervals = max(8, min(MAX_INTERVALS, MAX_VALUES // largest))
    starts = _phase_start_rows(run.history.rows)
    return [
        _phase_load(name, rows, max(2, max_intervals * len(rows) // total), starts[name])
        for name, rows in phases.items()
    ]


def build_load_table(phases: Sequence[dict[str, Any]]) -> ReportTable:
    """Return a table with a row per phase and layer: the loads of the last interval.

    Args:
        phases: What `build_router_load` returned.
    """
    table = ReportTable(
        make_columns(
            "phase",
            "mixture layer",
            "busiest expert",
            "its load",
            "least used expert",
            "its load",
            "experts without tokens",
            its_load="relative to an even share",
        )
    )
    for phase in phases:
        for layer, experts in enumerate(phase["loads"]):
            loads = {i: load[-1] for i, load in enumerate(experts) if load[-1] is not None}
            ends = [choose(loads, key=loads.__getitem__, default=None) for choose in (max, min)]
            cells = [text_cell(phase["phase"]), text_cell(layer)]
            for expert in ends:
                cells.append(text_cell(MISSING if expert is None else expert))
                load = None if expert is None else loads[expert] / 100
                cells.append(number_cell(load, format_magnitude))
            unused = [str(expert) for expert, load in loads.items() if load == 0]
            cells.append({"text": ", ".join(unused) or "none", "sort": len(unused)})
            table.rows.append(cells)
    return table


def _phase_start_rows(rows: Sequence[HistoryLine]) -> dict[str, HistoryLine]:
    """Return for each phase the row before its first, where its first interval starts."""
    starts: dict[str, HistoryLine] = {}
    before: HistoryLine = dict.fromkeys(COUNTER_FIELDS.values(), 0)
    for row in rows:
        starts.setdefault(str(row["phase"]), before)
        before = row
    return starts


def _is_load_matrix(loads: object) -> bool:
    return (
        isinstance(loads, list)
        and bool(loads)
        and all(isinstance(layer, list) and len(layer) == len(loads[0]) > 0 for layer in loads)
    )


def _phase_load(
    name: str, rows: Sequence[HistoryLine], num_intervals: int, start: HistoryLine
) -> dict[str, Any]:
    shape = (len(rows[0]["expert_loads"]), len(rows[0]["expert_loads"][0]))
    rows = [row for row in rows if (len(row["expert_loads"]), len(row["expert_loads"][0])) == shape]
    num_intervals = min(num_intervals, len(rows))
    cuts = [len(rows) * i // num_intervals for i in range(num_intervals + 1)]
    intervals = [rows[first:end] for first, end in pairwise(cuts)]
    return {
        "phase": name,
        "experts": shape[1],
        "edges": {
            axis: [round_significant(line[key], 7) for line in (start, *(s[-1] for s in intervals))]
            for axis, key in COUNTER_FIELDS.items()
        },
        "loads": [
            [
                [_mean_load(s, layer, expert, shape[1]) for s in intervals]
                for expert in range(shape[1])
            ]
            for layer in range(shape[0])
        ],
    }


def _mean_load(
    rows: Sequence[HistoryLine], layer: int, expert: int, num_experts: int
) -> int | None:
    shares = [finite_or_none(row["expert_loads"][layer][expert]) for row in rows]
    known = [share for share in shares if share is not None]
    return round(100 * num_experts * sum(known) / len(known)) if known else None
