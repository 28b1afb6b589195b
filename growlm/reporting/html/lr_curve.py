"""Compute the learning rate of every trained step from the schedule's settings, for its plot."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from growlm.optim.schedule_formulas import (
    PhasePosition,
    ScheduleNumbers,
    compute_shipped_factor,
)
from growlm.reporting.html.curves import finite_or_none, round_significant
from growlm.reporting.reading.history_reader import COUNTER_FIELDS, HistoryLine
from growlm.reporting.reading.run_files import Run

SHIPPED_SCHEDULES = ("wsd", "constant", "cosine")
MAX_STEPS_PER_PHASE = 4000
"""Steps of a phase at which its schedule is computed, besides those where the schedule bends."""
TOLERANCE = 0.002
"""Largest distance of the curve from the schedule, as a fraction of the highest rate."""
ROW_TOLERANCE = 1e-6
"""Relative difference between a logged rate and the schedule from which the logged ones are plotted instead."""


@dataclass(frozen=True)
class _Phase:
    name: str
    lr: float
    position: PhasePosition
    rows: list[HistoryLine]
    start: HistoryLine
    """Counters when the phase began."""


def build_lr_curve(run: Run) -> dict[str, Any] | None:
    """Return the learning rate against step, tokens, FLOPs and seconds; None if no row has one.

    Returns:
        The counters by axis, `lr`, and `logged`: names of the phases whose logged rates are shown, because no
        shipped schedule explains them (a schedule of the user's own; a run whose length was changed).
    """
    if not any(finite_or_none(row.get("lr")) is not None for row in run.history.rows):
        return None
    curve: dict[str, list[Any]] = {axis: [] for axis in (*COUNTER_FIELDS, "lr")}
    logged = []
    for phase in _trained_phases(run):
        schedule = _find_schedule(run, phase)
        if schedule is None:
            logged.append(phase.name)
            points = _thin([(row["global_step"], row.get("lr")) for row in phase.rows])
        else:
            points = _sample(phase, schedule)
        row_steps = [row["global_step"] for row in phase.rows]
        counters = [_counters_at(phase, row_steps, step) for step, _ in points]
        for axis in COUNTER_FIELDS:
            curve[axis] += [round_significant(counter[axis], 7) for counter in counters]
        curve["lr"] += [round_significant(finite_or_none(rate), 5) for _, rate in points]
    return curve | {"logged": logged}


def _trained_phases(run: Run) -> list[_Phase]:
    """Return the phases with rows, in the order of the history."""
    plan = {str(phase.get("name")): phase for phase in run.plan}
    plan_steps = sum(phase.get("steps") or 0 for phase in run.plan)
    rows: dict[str, list[HistoryLine]] = {}
    for row in run.history.rows:
        rows.setdefault(str(row["phase"]), []).append(row)
    phases, start, first_steps = [], dict.fromkeys(COUNTER_FIELDS.values(), 0), 0
    before = {}
    for name, planned in plan.items():
        before[name] = first_steps
        first_steps += planned.get("steps") or 0
    for name, of_phase in rows.items():
        planned = plan.get(name, {})
        settings = (run.config.get("phases") or {}).get(name) or {}
        position = PhasePosition(
            first_step=before.get(name, 0),
            num_steps=planned.get("steps") or 0,
            plan_steps=plan_steps,
            warmup_steps=int(finite_or_none(settings.get("warmup_steps")) or 0),
        )
        lr = finite_or_none(planned.get("lr"))
        phases.append(_Phase(name, lr or 0.0, position, of_phase, start))
        start = of_phase[-1]
    return phases


def _find_schedule(run: Run, phase: _Phase) -> Callable[[int], float] | None:
    """Return the rate at a step of the run (from 1), or None if the phase's rows tell of another schedule."""
    settings = run.config.get("schedule")
    if not isinstance(settings, dict) or settings.get("name") not in SHIPPED_SCHEDULES:
        return None
    numbers = ScheduleNumbers(
        int(finite_or_none(settings.get("warmup_steps")) or 0),
        finite_or_none(settings.get("decay_fraction")) or 0.0,
        finite_or_none(settings.get("final_fraction")) or 0.0,
    )

    def rate(step: int) -> float:
        phase_step = int(step) - phase.position.first_step - 1
        factor = compute_shipped_factor(settings["name"], numbers, phase.position, phase_step)
        return phase.lr * factor

    for row in phase.rows:
        found = finite_or_none(row.get("lr"))
        if found is None or abs(found - rate(row["global_step"])) > ROW_TOLERANCE * abs(found):
            return None
    return rate


def _sample(phase: _Phase, rate: Callable[[int], float]) -> list[tuple[float, float]]:
    """Return steps and rates such that straight lines between them follow the schedule."""
    first, last = phase.position.first_step + 1, int(phase.rows[-1]["global_step"])
    stride = max(1, (last - first) // MAX_STEPS_PER_PHASE)
    return _thin([(step, rate(step)) for step in sorted({*range(first, last + 1, stride), last})])


def _thin(points: Sequence[tuple[float, Any]]) -> list[tuple[float, float]]:
    """Return the points with a finite rate, without those that lie on the line through their neighbors."""
    known = [(step, lr) for step, rate in points if (lr := finite_or_none(rate)) is not None]
    if len(known) < 3:
        return known
    steps, rates = [step for step, _ in known], [lr for _, lr in known]
    return [known[index] for index in _simplify(steps, rates, TOLERANCE * max(rates))]


def _simplify(xs: Sequence[float], ys: Sequence[float], tolerance: float) -> list[int]:
    """Return indices of points whose connecting lines stay within `tolerance` of all (Douglas and Peucker)."""
    kept, open_ranges = {0, len(xs) - 1}, [(0, len(xs) - 1)]
    while open_ranges:
        first, last = open_ranges.pop()
        if last - first < 2:
            continue
        slope = (ys[last] - ys[first]) / ((xs[last] - xs[first]) or 1)
        distances = [
            abs(ys[index] - ys[first] - slope * (xs[index] - xs[first]))
            for index in range(first + 1, last)
        ]
        farthest = max(range(len(distances)), key=distances.__getitem__)
        if distances[farthest] > tolerance:
            index = first + 1 + farthest
            kept.add(index)
            open_ranges += [(first, index), (index, last)]
    return sorted(kept)


def _counters_at(phase: _Phase, row_steps: Sequence[float], step: float) -> dict[str, float]:
    """Return the counters at a step, on a straight line between the rows around it."""
    index = min(bisect_left(row_steps, step), len(row_steps) - 1)
    after = phase.rows[index]
    before = phase.rows[index - 1] if index else phase.start
    span = after["global_step"] - before["global_step"]
    part = (step - before["global_step"]) / span if span > 0 else 1.0
    return {
        axis: before[key] + part * (after[key] - before[key])
        for axis, key in COUNTER_FIELDS.items()
    }
