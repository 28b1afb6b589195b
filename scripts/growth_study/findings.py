"""What the finished runs say: every axis beside its baselines, every change beside the plan that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from growth_study.agenda import Losses, losses_of, source_rate, tried_rates, tuned_rate
from growth_study.arms import AXES, Arm, Axis
from growth_study.costs import Line, Point, Read, Speeds, measured_speeds, seconds_of
from growth_study.record_file import Record


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the deviation between them."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    def less(self, other: Spread) -> Spread:
        """The differences, seed by seed."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, form: str) -> str:
        """`0.6543 ± 0.0012`; the deviation only where there are several seeds."""
        shown = format(self.mean, form)
        if len(self.values) < 2:
            return shown
        return f"{shown} ± {format(stdev(self.values), form.lstrip('+'))}"


@dataclass(frozen=True)
class AxisFindings:
    """A grown model beside the baselines of its axis; only seeds with all three."""

    axis: Axis
    arm: Arm
    """The grown one."""
    losses: dict[str, Spread]
    """Of `continue`, `scratch`, `grown`, for the whole budget."""
    differences: dict[str, Spread]
    """Of the final loss, grown less `scratch`, and less `continue`."""
    late: list[Read | None]
    """Grown less scratch after the seconds that scratch took; a seed each."""
    flops: list[Read | None]
    """That the grown model needs for the loss of scratch, relative to what scratch took."""
    seconds: list[Read | None]
    """Likewise seconds."""


@dataclass(frozen=True)
class ChangeFindings:
    """A change beside the plan that it changes."""

    arm: Arm
    loss: Spread
    difference: Spread
    """Of the final loss, to the plan's with the same seed."""
    jumps: list[float]
    """Of the loss on the probe, wherever the model grew."""


class Findings:
    """All of it.

    Args:
        records: Of finished runs.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.losses: Losses = losses_of(records)
        self.speeds: Speeds = measured_speeds(records)

    def of_arm(self, arm: Arm) -> list[Record]:
        """Its runs with the tuned rates."""
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
        """Those whose runs have finished."""
        arms = [(axis, arm) for axis in AXES for arm in axis.grown_arms]
        found = [self._axis(axis, arm) for axis, arm in arms]
        return [axis for axis in found if axis is not None]

    def changes(self, axis: Axis) -> list[ChangeFindings]:
        """Those that have finished."""
        plan = {r["seed"]: r for r in self.of_arm(axis.main_arm("grown")) if r["share"] == 1.0}
        found = []
        for arm in axis.changes:
            runs = [r for r in self.of_arm(arm) if r["seed"] in plan and r["share"] == 1.0]
            if runs:
                losses = Spread(tuple(r["loss"] for r in runs))
                plans = Spread(tuple(plan[r["seed"]]["loss"] for r in runs))
                jumps = [boundary["jump"] for boundary in runs[0]["boundaries"]]
                found.append(ChangeFindings(arm, losses, losses.less(plans), jumps))
        return found

    def tuning(self, axis: Axis) -> dict[str, dict[float, float]]:
        """What each arm that is tuned lost with each rate."""
        return {arm.name: tried_rates(arm, self.losses) for arm in axis.arms if arm.is_tuned}

    def points(self, arm: Arm, cost: str, seed: int) -> list[Point]:
        """(cost, loss) of the arm's runs, by `flops` or `seconds`."""
        runs = [r for r in self.of_arm(arm) if r["seed"] == seed]
        return sorted((self.cost(r, cost), r["loss"]) for r in runs)

    def cost(self, record: Record, cost: str) -> float:
        """Of a whole run."""
        return record["flops"] if cost == "flops" else seconds_of(record, self.speeds)

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
        ratios: dict[str, list[Read | None]] = {"flops": [], "seconds": []}
        late: list[Read | None] = []
        for seed in seeds:
            scratch = whole["scratch"][seed]
            for cost, found in ratios.items():
                price = self.cost(scratch, cost)
                line = Line(self.points(arm, cost, seed))
                reached = line.cost_to(scratch["loss"])
                found.append(reached and Read(reached.value / price, reached.sign))
            then = line.loss_at(price)
            late.append(then and Read(then.value - scratch["loss"], then.sign))
        return AxisFindings(
            axis,
            arm,
            losses,
            {name: losses["grown"].less(losses[name]) for name in ("scratch", "continue")},
            late,
            ratios["flops"],
            ratios["seconds"],
        )
