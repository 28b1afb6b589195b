"""What a run cost, and what it takes to reach a loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

from growth_study.record_file import Record

Speeds = Mapping[tuple[int, int], float]
"""Seconds a token, by the model's parameters and active parameters."""
Point = tuple[float, float]
"""A cost and the loss after it."""
BEYOND = 1.5
"""How far beyond the longest run the line is drawn on, relative to it."""


@dataclass(frozen=True)
class Read:
    """A cost or a loss, read off a line."""

    value: float
    sign: str = ""
    """`≤`: the shortest run was there already; `≈`: beyond the runs, on the line drawn on."""


def measured_speeds(records: Iterable[Record]) -> dict[tuple[int, int], float]:
    """The median over all runs, for each model: no run is the slower for what the machine did meanwhile.

    Phases that several runs share were trained, and timed, once.
    """
    found = defaultdict(set)
    for record in records:
        for phase in record.get("phases", []):
            if phase["seconds"]:
                model = (phase["parameters"], phase["active"])
                found[model].add(phase["seconds"] / phase["tokens"])
    return {model: median(values) for model, values in found.items()}


def seconds_of(record: Record, speeds: Speeds) -> float:
    """Of a run: its steps, and its growths with their checks."""
    steps = sum(p["tokens"] * speeds[p["parameters"], p["active"]] for p in record["phases"])
    return steps + sum(boundary["seconds"] for boundary in record["boundaries"])


def seconds_after(record: Record, speeds: Speeds, flops: Sequence[float]) -> list[float]:
    """Into the run, where it has spent so many FLOPs."""
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
    """Final losses over the logarithm of the cost, as the straight line nearest to them.

    Args:
        points: Of runs of different lengths, at least two.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        costs = [cost for cost, _ in points]
        self.shortest, self.longest = min(costs), max(costs)
        x = [math.log(cost) for cost in costs]
        self.slope, self.start = linear_regression(x, [loss for _, loss in points])

    def cost_to(self, loss: float) -> Read | None:
        """The cost at which a loss is reached; None where the line does not lead there."""
        if self.slope >= 0:
            return None
        power = (loss - self.start) / self.slope
        if power <= math.log(self.shortest):
            return Read(self.shortest, "≤")
        if power > math.log(BEYOND * self.longest):
            return None
        return Read(math.exp(power), "≈" if power > math.log(self.longest) else "")

    def loss_at(self, cost: float) -> Read | None:
        """The loss of a run of that cost; None where no run is near."""
        if not self.shortest / BEYOND <= cost <= self.longest * BEYOND:
            return None
        is_between = self.shortest <= cost <= self.longest
        return Read(self.start + self.slope * math.log(cost), "" if is_between else "≈")
