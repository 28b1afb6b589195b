"""What the finished runs say: every axis beside its baselines, every change beside the plan that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from growth_study.agenda import Losses, losses_of, source_rate, tried_rates, tuned_rate
from growth_study.arms import AXES, Arm, Axis
from growth_study.costs import Cost, Point, Speeds, cost_to, loss_at, measured_speeds, seconds_of
from growth_study.record_file import Record


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the deviation between them."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

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
    difference: Spread
    """Of the final loss, grown less scratch."""
    difference_in_time: Spread | None
    """Likewise after the seconds that scratch took."""
    flops: list[Cost | None]
    """That the grown model needs for the loss of scratch, relative to what scratch took; a seed each."""
    seconds: list[Cost | None]
    """Likewise seconds."""


@dataclass(frozen=True)
class ChangeFindings:
    """A change beside the plan that it changes."""

    arm: Arm
    loss: Spread
    difference: Spread
    """Of the final loss, to the plan's with the same seed."""
    jump: float
    """Of the loss on the probe, where the model grew."""


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
            if (r["arm"], r["source_rate"], r["rate"]) == wanted and r["loss"] is not None
        ]

    def axes(self) -> list[AxisFindings]:
        """Those whose runs have finished."""
        arms = [(axis, arm) for axis in AXES for arm in axis.grown_arms]
        found = [self._axis(axis, arm) for axis, arm in arms]
        return [axis for axis in found if axis is not None]

    def changes(self, axis: Axis) -> list[ChangeFindings]:
        """Those that have finished."""
        plan = {r["seed"]: r for r in self.of_arm(main_arm(axis, "grown")) if r["share"] == 1.0}
        found = []
        for arm in axis.changes:
            runs = [r for r in self.of_arm(arm) if r["seed"] in plan and r["share"] == 1.0]
            if runs:
                differences = tuple(r["loss"] - plan[r["seed"]]["loss"] for r in runs)
                losses = tuple(r["loss"] for r in runs)
                jump = runs[0]["boundaries"][0]["jump"]
                found.append(ChangeFindings(arm, Spread(losses), Spread(differences), jump))
        return found

    def tuning(self, axis: Axis) -> dict[str, dict[float, float]]:
        """What each arm that is tuned lost with each rate."""
        arms = {name: main_arm(axis, name) for name in ("continue", "scratch", "grown")}
        return {name: tried_rates(arm, self.losses) for name, arm in arms.items()}

    def points(self, arm: Arm, cost: str, seed: int) -> list[Point]:
        """(cost, loss) of the arm's runs, by `flops` or `seconds`."""
        runs = [r for r in self.of_arm(arm) if r["seed"] == seed]
        return sorted((self.cost(r, cost), r["loss"]) for r in runs)

    def cost(self, record: Record, cost: str) -> float:
        """Of a whole run."""
        return record["flops"] if cost == "flops" else seconds_of(record, self.speeds)

    def _axis(self, axis: Axis, arm: Arm) -> AxisFindings | None:
        arms = {name: main_arm(axis, name) for name in ("continue", "scratch")} | {"grown": arm}
        whole = {
            name: {r["seed"]: r for r in self.of_arm(arm) if r["share"] == 1.0}
            for name, arm in arms.items()
        }
        seeds = sorted(set.intersection(*(set(runs) for runs in whole.values())))
        if not seeds:
            return None
        losses = {n: Spread(tuple(runs[s]["loss"] for s in seeds)) for n, runs in whole.items()}
        costs: dict[str, list[Cost | None]] = {"flops": [], "seconds": []}
        in_time = []
        for seed in seeds:
            scratch = whole["scratch"][seed]
            for cost, found in costs.items():
                reached = cost_to(self.points(arms["grown"], cost, seed), scratch["loss"])
                price = self.cost(scratch, cost)
                found.append(reached and Cost(reached.value / price, reached.bound))
            price = self.cost(scratch, "seconds")
            in_time.append(loss_at(self.points(arms["grown"], "seconds", seed), price))
        grown, scratch_losses = losses["grown"].values, losses["scratch"].values
        late = [None if a is None else a - b for a, b in zip(in_time, scratch_losses, strict=True)]
        known = tuple(value for value in late if value is not None)
        return AxisFindings(
            axis,
            arm,
            losses,
            Spread(tuple(a - b for a, b in zip(grown, scratch_losses, strict=True))),
            Spread(known) if len(known) == len(late) else None,
            costs["flops"],
            costs["seconds"],
        )


def main_arm(axis: Axis, name: str) -> Arm:
    """`continue`, `scratch` or `grown`."""
    return next(arm for arm in axis.arms if arm.name == name)
