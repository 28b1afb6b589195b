"""Compute the cost of runs, and the cost at which a loss is reached."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

from growth_study.record_file import Record

Speeds = Mapping[tuple[int, int], float]
"""Seconds per token, by the parameters and active parameters of the model."""
Point = tuple[float, float]
"""Cost of a run and its final loss."""
MAX_EXTRAPOLATION = 1.5
"""Largest extrapolation of the line, relative to the longest run."""


@dataclass(frozen=True)
class Reading:
    """A cost or a loss that was read off a line."""

    value: float
    sign: str = ""
    """`≤` if the shortest run had already reached the loss; `≈` if the line was extrapolated."""


def measured_speeds(records: Iterable[Record]) -> dict[tuple[int, int], float]:
    """Return the median seconds per token over all runs for each model.

    The median keeps other load on the machine from counting. Phases that several runs share were trained and timed
    once, and count once.
    """
    measured = defaultdict(set)
    for record in records:
        for phase in record.get("phases", []):
            if phase["seconds"]:
                model = (phase["parameters"], phase["active"])
                measured[model].add(phase["seconds"] / phase["tokens"])
    return {model: median(values) for model, values in measured.items()}


def compute_seconds(record: Record, speeds: Speeds) -> float:
    """Return the seconds of a run: its steps, and its growths with their checks."""
    steps = sum(p["tokens"] * speeds[p["parameters"], p["active"]] for p in record["phases"])
    return steps + sum(boundary["seconds"] for boundary in record["boundaries"])


def compute_seconds_at(record: Record, speeds: Speeds, flops: Sequence[float]) -> list[float]:
    """Return the seconds after which the run has spent each number of FLOPs."""
    ends = [(0.0, 0.0)]
    growths = {boundary["to"]: boundary["seconds"] for boundary in record["boundaries"]}
    for phase in record["phases"]:
        spent, seconds = ends[-1]
        seconds += growths.get(phase["name"], 0.0)
        ends.append((spent, seconds))
        own = phase["tokens"] * speeds[phase["parameters"], phase["active"]]
        ends.append((spent + phase["flops"], seconds + own))
    return [_between(ends, value) for value in flops]


def _between(points: Sequence[Point], x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1] if x <= points[0][0] else points[-1][1]


class Line:
    """Least-squares line through final losses over the logarithm of the cost.

    Args:
        points: Points of runs of at least two different lengths.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        costs = [cost for cost, _ in points]
        self.shortest, self.longest = min(costs), max(costs)
        x = [math.log(cost) for cost in costs]
        self.slope, self.start = linear_regression(x, [loss for _, loss in points])

    def cost_to(self, loss: float) -> Reading | None:
        """Return the cost at which a loss is reached, or None if the line does not reach it."""
        if self.slope >= 0:
            return None
        power = (loss - self.start) / self.slope
        if power <= math.log(self.shortest):
            return Reading(self.shortest, "≤")
        if power > math.log(MAX_EXTRAPOLATION * self.longest):
            return None
        return Reading(math.exp(power), "≈" if power > math.log(self.longest) else "")

    def loss_at(self, cost: float) -> Reading | None:
        """Return the loss of a run of that cost, or None if the cost is too far from all runs."""
        if not self.shortest / MAX_EXTRAPOLATION <= cost <= self.longest * MAX_EXTRAPOLATION:
            return None
        is_between = self.shortest <= cost <= self.longest
        return Reading(self.start + self.slope * math.log(cost), "" if is_between else "≈")
