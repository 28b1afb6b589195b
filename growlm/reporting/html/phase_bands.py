"""Compute where each phase lies on the axes, how large its model is, and what grew at its start."""

from __future__ import annotations

from typing import Any

from growlm.reporting.html.curves import finite_or_none, round_significant
from growlm.reporting.reading import outcome
from growlm.reporting.reading.history_reader import COUNTER_FIELDS, HistoryLine
from growlm.reporting.reading.run_files import Run
from growlm.runtime.number_format import format_large_count


def build_phase_bands(run: Run) -> list[dict[str, Any]]:
    """Return the phases that trained, in order.

    Returns:
        For each phase: `name`; `grew`, what grew at its start (empty if nothing did); `steps`; `start` and `end`
        on each axis; `total` and `active` parameters and `memory` in bytes, None if they are not known.
    """
    ends: dict[str, HistoryLine] = {str(row["phase"]): row for row in run.history.rows}
    grown = {
        str(boundary.get("to")): outcome.describe_growth(boundary, run.config)
        for boundary in run.boundaries
    }
    sizes = {str(phase.get("name")): phase for phase in outcome.collect_phase_metrics(run)}
    start: HistoryLine = dict.fromkeys(COUNTER_FIELDS.values(), 0)
    bands = []
    for name, end in ends.items():
        size = sizes.get(name, {})
        bands.append(
            {
                "name": name,
                "grew": grown.get(name, ""),
                "steps": end.get("step"),
                "start": _counters(start),
                "end": _counters(end),
                "total": finite_or_none(size.get("total_parameters")),
                "active": finite_or_none(size.get("active_parameters")),
                "totalText": format_large_count(finite_or_none(size.get("total_parameters"))),
                "activeText": format_large_count(finite_or_none(size.get("active_parameters"))),
                "memory": finite_or_none(size.get("peak_memory_bytes")),
            }
        )
        start = end
    return bands


def _counters(line: HistoryLine) -> dict[str, Any]:
    return {
        axis: round_significant(finite_or_none(line[key]), 7)
        for axis, key in COUNTER_FIELDS.items()
    }
