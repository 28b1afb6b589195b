"""How routers spread their tokens over experts, over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from growlm.reporting.html.curves import finite_or_none, round_significant
from growlm.reporting.reading.history_reader import COUNTER_FIELDS, HistoryLine
from growlm.reporting.reading.run_files import Run

MAX_INTERVALS = 200
"""Stretches of time that are drawn of a run, at most."""
MAX_VALUES = 150_000
"""Figures in all: stretches x layers x experts."""


def build_router_load(run: Run) -> list[dict[str, Any]]:
    """Each phase with experts, in stretches of time, and the mean loads of each.

    Returns:
        Of each phase `phase`, `experts`, `edges` of the stretches by axis, one more than stretches, and `loads` as
        [layer][expert][stretch] in hundredths of an even share: 100 is as many tokens as the average expert has.
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
    columns = max(8, min(MAX_INTERVALS, MAX_VALUES // largest))
    starts = _phase_start_rows(run.history.rows)
    return [
        _phase_load(name, rows, max(2, columns * len(rows) // total), starts[name])
        for name, rows in phases.items()
    ]


def _phase_start_rows(rows: Sequence[HistoryLine]) -> dict[str, HistoryLine]:
    """Of each phase, the row before its first: where its first stretch begins."""
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
    cuts = [len(rows) * column // num_intervals for column in range(num_intervals + 1)]
    stretches = [rows[first:end] for first, end in pairwise(cuts)]
    return {
        "phase": name,
        "experts": shape[1],
        "edges": {
            axis: [round_significant(line[key], 7) for line in (start, *(s[-1] for s in stretches))]
            for axis, key in COUNTER_FIELDS.items()
        },
        "loads": [
            [
                [_mean_load(s, layer, expert, shape[1]) for s in stretches]
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
