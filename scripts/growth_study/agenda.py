"""Which runs are to do, from those that are done: rates are tuned first, what takes the tuned rate comes after."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from growth_study.arms import GRID, TUNING_SEED, Arm, Axis, axis_named
from growth_study.record_file import Record
from growth_study.runs import Run

STEP = 2.0
"""Between neighbouring rates of the grid."""
Losses = Mapping[tuple[str, int, float, float, float], float]
"""Of the finished runs, by arm, seed, rate before the growth, rate, share."""


def losses_of(records: Iterable[Record]) -> dict[tuple[str, int, float, float, float], float]:
    """By what the agenda asks for; a run that diverged lost everything."""
    return {
        (r["arm"], r["seed"], r["source_rate"], r["rate"], r["share"]): (
            math.inf if r["loss"] is None else r["loss"]
        )
        for r in records
    }


def next_runs(axes: Sequence[Axis], losses: Losses, taken: Sequence[Run]) -> list[list[Run]]:
    """The runs that can begin now, in groups; those of one group share phases and follow one another.

    Args:
        axes: To study.
        losses: What has been found so far.
        taken: Runs that have begun, or failed.

    Returns:
        Those of the main axes come first, seed by seed, and before others those that need not wait for what is
        being trained.
    """
    groups: list[list[Run]] = []
    seen = {_key(run) for run in taken}
    for arm in (arm for axis in axes for arm in axis.arms):
        for group in _runs_of(arm, losses):
            todo = [run for run in group if _key(run) not in losses and _key(run) not in seen]
            seen |= {_key(run) for run in todo}
            if todo:
                groups.append(todo)
    return sorted(groups, key=lambda group: (*_turn(group[0]), _would_wait(group[0], taken)))


def tuned_rate(arm: Arm, losses: Losses) -> float | None:
    """The best rate for the arm, tuned with a seed of its own; None while that is not known."""
    if not arm.is_tuned:
        return tuned_rate(axis_named(arm.axis).main_arm("grown"), losses)
    known = tried_rates(arm, losses)
    if any(rate not in known for rate in _to_try(known)):
        return None
    best = min(known, key=lambda rate: known[rate])
    return best if known[best] < math.inf else None


def source_rate(arm: Arm, losses: Losses) -> float | None:
    """The rate of the first model, as its own continuation has it."""
    return tuned_rate(axis_named(arm.axis).main_arm("continue"), losses)


def tried_rates(arm: Arm, losses: Losses) -> dict[float, float]:
    """Rate -> loss after the whole budget, with the seed that rates are tuned with."""
    before = source_rate(arm, losses) if arm.baseline == "none" else None
    return {
        rate: loss
        for (key, seed, source, rate, share), loss in losses.items()
        if (key, seed, share) == (arm.key, TUNING_SEED, 1.0)
        and source == (before if arm.baseline == "none" else rate)
    }


def _to_try(known: Mapping[float, float]) -> list[float]:
    """The first rates, and beyond them as long as the best is at an end."""
    rates = sorted({*GRID, *known})
    if any(rate not in known for rate in rates):
        return rates
    best = min(rates, key=lambda rate: known[rate])
    if known[best] == math.inf:
        return rates  # none is any good
    if best == rates[0]:
        return [best / STEP, *rates]
    return [*rates, best * STEP] if best == rates[-1] else rates


def _runs_of(arm: Arm, losses: Losses) -> list[list[Run]]:
    grows = arm.baseline == "none"
    before = source_rate(arm, losses) if grows else None
    if grows and before is None:
        return []

    def run(seed: int, rate: float, share: float) -> Run:
        return Run(arm, seed, rate if before is None else before, rate, share)

    groups = []
    if arm.is_tuned:
        known = tried_rates(arm, losses)
        groups = [[run(TUNING_SEED, rate, 1.0)] for rate in _to_try(known) if rate not in known]
    rate = tuned_rate(arm, losses)
    if rate is not None:
        groups += [[run(seed, rate, share) for share in arm.shares] for seed in arm.seeds]
    return groups


def _turn(run: Run) -> tuple[bool, int]:
    return (not axis_named(run.arm.axis).is_headline, run.seed)


def _would_wait(run: Run, taken: Sequence[Run]) -> bool:
    """For the phases that another one is training."""

    def beginning(run: Run) -> tuple[object, ...]:
        source = axis_named(run.arm.axis).source
        return (source, run.arm.grows_at, run.seed, run.source_rate, run.arm.baseline)

    return run.arm.baseline == "none" and beginning(run) in map(beginning, taken)


def _key(run: Run) -> tuple[str, int, float, float, float]:
    return (run.arm.key, run.seed, run.source_rate, run.rate, run.share)
