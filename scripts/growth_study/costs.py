"""What a run cost, and what it takes to reach a loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from growth_study.record_file import Record

Speeds = Mapping[tuple[int, int], float]
"""Seconds a token, by the model's parameters and active parameters."""
Point = tuple[float, float]
"""A cost and the loss after it."""
BEYOND = 1.5
"""How far beyond the longest run a cost is extrapolated, relative to it."""


@dataclass(frozen=True)
class Cost:
    """What it takes to reach a loss."""

    value: float
    bound: str = ""
    """`at most`: the shortest run was there already; `about`: beyond the longest run."""


def measured_speeds(records: Iterable[Record]) -> dict[tuple[int, int], float]:
    """The median over all runs, for each model: no run is the slower for what the machine did meanwhile."""
    found = defaultdict(list)
    for record in records:
        for phase in record.get("phases", []):
            if phase["seconds"]:
                model = (phase["parameters"], phase["active"])
                found[model].append(phase["seconds"] / phase["tokens"])
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


def cost_to(points: Sequence[Point], target: float) -> Cost | None:
    """The cost at which runs of rising cost reach a loss: on a straight line over the cost's logarithm.

    Returns:
        None where the losses do not lead there.
    """
    points = sorted(points)
    if points[0][1] <= target:
        return Cost(points[0][0], "at most")
    for before, after in pairwise(points):
        if after[1] <= target:
            return Cost(_cost_between(before, after, target))
    if len(points) > 1 and points[-1][1] < points[-2][1]:
        value = _cost_between(points[-2], points[-1], target)
        if value <= BEYOND * points[-1][0]:
            return Cost(value, "about")
    return None


def loss_at(points: Sequence[Point], cost: float) -> float | None:
    """The loss of a run of that cost, likewise; None where no two runs are near."""
    points = sorted(points)
    if len(points) < 2 or not points[0][0] / BEYOND <= cost <= points[-1][0] * BEYOND:
        return None
    later = next((i for i in range(1, len(points)) if points[i][0] >= cost), len(points) - 1)
    (x0, y0), (x1, y1) = points[later - 1], points[later]
    return y0 + (y1 - y0) * math.log(cost / x0) / math.log(x1 / x0)


def _cost_between(before: Point, after: Point, target: float) -> float:
    (x0, y0), (x1, y1) = before, after
    return x0 * (x1 / x0) ** ((y0 - target) / (y0 - y1))
