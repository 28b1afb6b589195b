"""Compare the finished runs: every axis with its baselines, and every change with the plan that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from growth_study.agenda import Losses, collect_losses, source_rate, tried_rates, tuned_rate
from growth_study.arms import AXES, Arm, Axis
from growth_study.costs import Line, Point, Reading, Speeds, compute_seconds, measured_speeds
from growth_study.record_file import Record


@dataclass(frozen=True)
class Spread:
    """Values for several seeds, with their mean and standard deviation."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.values)

    def minus(self, other: Spread) -> Spread:
        """Return the differences to the other values, seed by seed."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, form: str) -> str:
        """Return the values as `0.6543 ± 0.0012`, without the deviation if there is only one seed."""
        shown = format(self.mean, form)
        if len(self.values) < 2:
            return shown
        return f"{shown} ± {format(stdev(self.values), form.lstrip('+'))}"


@dataclass(frozen=True)
class AxisFindings:
    """Comparison of a grown model with the baselines of its axis, over the seeds that have all three."""

    axis: Axis
    arm: Arm
    """Arm of the grown model."""
    losses: dict[str, Spread]
    """Final losses of `continue`, `scratch` and `grown` after the whole budget."""
    differences: dict[str, Spread]
    """Final loss of `grown` minus that of `scratch`, and minus that of `continue`."""
    late: list[Reading | None]
    """Loss of `grown` minus that of `scratch` after as many seconds as `scratch` took, for each seed."""
    flops: list[Reading | None]
    """FLOPs that `grown` needs to reach the loss of `scratch`, relative to those of `scratch`, for each seed."""
    seconds: list[Reading | None]
    """Seconds that `grown` needs to reach the loss of `scratch`, relative to those of `scratch`, for each seed."""


@dataclass(frozen=True)
class ChangeFindings:
    """Comparison of a change with the plan that it changes."""

    arm: Arm
    loss: Spread
    difference: Spread
    """Final loss minus that of the plan with the same seed."""
    jumps: list[float]
    """Changes of the loss on the probe at each growth."""


class Findings:
    """Everything that the study has found so far.

    Args:
        records: Records of the finished runs.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.losses: Losses = collect_losses(records)
        self.speeds: Speeds = measured_speeds(records)

    def of_arm(self, arm: Arm) -> list[Record]:
        """Return the records of the arm's runs with the tuned rates."""
        rate = tuned_rate(arm, self.losses)
        before = source_rate(arm, self.losses) if arm.baseline == "none" else rate
        wanted = (arm.key, before, rate)
        return [
            r
            for r in self.records
            if (r["arm"], r["source_rate"], r["rate"]) == wanted
            and r["seed"] in arm.seeds
            and r["share"] in arm.shares
            and r["loss"] is not None
        ]

    def axes(self) -> list[AxisFindings]:
        """Return the comparisons of the axes whose runs have finished."""
        arms = [(axis, arm) for axis in AXES for arm in axis.grown_arms]
        found = [self._axis(axis, arm) for axis, arm in arms]
        return [axis for axis in found if axis is not None]

    def changes(self, axis: Axis) -> list[ChangeFindings]:
        """Return the comparisons of the changes that have finished."""
        plan = {r["seed"]: r for r in self.of_arm(axis.main_arm("grown")) if r["share"] == 1.0}
        found = []
        for arm in axis.changes:
            runs = [r for r in self.of_arm(arm) if r["seed"] in plan and r["share"] == 1.0]
            if runs:
                losses = Spread(tuple(r["loss"] for r in runs))
                plans = Spread(tuple(plan[r["seed"]]["loss"] for r in runs))
                jumps = [boundary["jump"] for boundary in runs[0]["boundaries"]]
                found.append(ChangeFindings(arm, losses, losses.minus(plans), jumps))
        return found

    def tuning(self, axis: Axis) -> dict[str, dict[float, float]]:
        """Return the losses by rate of each tuned arm."""
        return {arm.name: tried_rates(arm, self.losses) for arm in axis.arms if arm.is_tuned}

    def points(self, arm: Arm, cost: str, seed: int) -> list[Point]:
        """Return (cost, loss) of the arm's runs with a seed; the cost is `flops` or `seconds`."""
        runs = [r for r in self.of_arm(arm) if r["seed"] == seed]
        return sorted((self.cost(r, cost), r["loss"]) for r in runs)

    def cost(self, record: Record, cost: str) -> float:
        """Return the cost of a whole run in `flops` or `seconds`."""
        return record["flops"] if cost == "flops" else compute_seconds(record, self.speeds)

    def _axis(self, axis: Axis, arm: Arm) -> AxisFindings | None:
        arms = {name: axis.main_arm(name) for name in ("continue", "scratch")} | {"grown": arm}
        whole = {
            name: {r["seed"]: r for r in self.of_arm(arm) if r["share"] == 1.0}
            for name, arm in arms.items()
        }
        lengths = {seed: len(self.points(arm, "flops", seed)) for seed in whole["grown"]}
        seeds = [
            seed
            for seed in sorted(set.intersection(*(set(runs) for runs in whole.values())))
            if lengths[seed] == len(arm.shares)
        ]
        if not seeds:
            return None
        losses = {n: Spread(tuple(runs[s]["loss"] for s in seeds)) for n, runs in whole.items()}
        ratios: dict[str, list[Reading | None]] = {"flops": [], "seconds": []}
        late: list[Reading | None] = []
        for seed in seeds:
            scratch = whole["scratch"][seed]
            for cost, found in ratios.items():
                price = self.cost(scratch, cost)
                line = Line(self.points(arm, cost, seed))
                reached = line.cost_to(scratch["loss"])
                found.append(reached and Reading(reached.value / price, reached.sign))
            then = line.loss_at(price)
            late.append(then and Reading(then.value - scratch["loss"], then.sign))
        return AxisFindings(
            axis,
            arm,
            losses,
            {name: losses["grown"].minus(losses[name]) for name in ("scratch", "continue")},
            late,
            ratios["flops"],
            ratios["seconds"],
        )
