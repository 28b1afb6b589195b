"""Choose the next runs of the study from the finished ones; learning rates are tuned before they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from growth_study.arms import RATE_GRID, TUNING_SEED, Arm, Axis, get_axis
from growth_study.record_file import Record
from growth_study.runs import Run

STEP = 2.0
"""Ratio of neighboring rates of the grid."""
Losses = Mapping[tuple[str, int, float, float, float], float]
"""Final losses of the finished runs, by arm, seed, rate before the growth, rate and share."""


def collect_losses(records: Iterable[Record]) -> dict[tuple[str, int, float, float, float], float]:
    """Return the final losses by run; a run that diverged has an infinite loss."""
    return {
        (r["arm"], r["seed"], r["source_rate"], r["rate"], r["share"]): (
            math.inf if r["loss"] is None else r["loss"]
        )
        for r in records
    }


def next_runs(axes: Sequence[Axis], losses: Losses, taken: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that can start now, in groups that share phases and run one after another.

    Args:
        axes: Axes to study.
        losses: Losses of the runs that have finished.
        taken: Runs that have started or failed.

    Returns:
        The groups, those of the main axes first, seed by seed. Groups that need not wait for a phase that is being
        trained come before the others.
    """
    groups: list[list[Run]] = []
    seen = {_key(run) for run in taken}
    for arm in (arm for axis in axes for arm in axis.arms):
        for group in _runs_of(arm, losses):
            todo = [run for run in group if _key(run) not in losses and _key(run) not in seen]
            seen |= {_key(run) for run in todo}
            if todo:
                groups.append(todo)
    return sorted(groups, key=lambda group: (*_priority(group[0]), _must_wait(group[0], taken)))


def tuned_rate(arm: Arm, losses: Losses) -> float | None:
    """Return the best rate for the arm, which is tuned with its own seed, or None if it is not known yet."""
    if not arm.is_tuned:
        return tuned_rate(get_axis(arm.axis).main_arm("grown"), losses)
    known = tried_rates(arm, losses)
    if any(rate not in known for rate in _rates_to_try(known)):
        return None
    best = min(known, key=lambda rate: known[rate])
    return best if known[best] < math.inf else None


def source_rate(arm: Arm, losses: Losses) -> float | None:
    """Return the rate of the first model, which is the best one for its own continuation."""
    return tuned_rate(get_axis(arm.axis).main_arm("continue"), losses)


def tried_rates(arm: Arm, losses: Losses) -> dict[float, float]:
    """Return the loss after the whole budget by rate, for the seed that rates are tuned with."""
    before = source_rate(arm, losses) if arm.baseline == "none" else None
    return {
        rate: loss
        for (key, seed, source, rate, share), loss in losses.items()
        if (key, seed, share) == (arm.key, TUNING_SEED, 1.0)
        and source == (before if arm.baseline == "none" else rate)
    }


def _rates_to_try(known: Mapping[float, float]) -> list[float]:
    """Return the rates of the grid, extended as long as the best is the lowest or the highest."""
    rates = sorted({*RATE_GRID, *known})
    if any(rate not in known for rate in rates):
        return rates
    best = min(rates, key=lambda rate: known[rate])
    if known[best] == math.inf:
        return rates  # all of them diverge
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
        groups = [
            [run(TUNING_SEED, rate, 1.0)] for rate in _rates_to_try(known) if rate not in known
        ]
    rate = tuned_rate(arm, losses)
    if rate is not None:
        groups += [[run(seed, rate, share) for share in arm.shares] for seed in arm.seeds]
    return groups


def _priority(run: Run) -> tuple[bool, int]:
    return (not get_axis(run.arm.axis).is_headline, run.seed)


def _must_wait(run: Run, taken: Sequence[Run]) -> bool:
    """Return whether the run would wait for a phase that another run is training."""

    def shared_start(run: Run) -> tuple[object, ...]:
        source = get_axis(run.arm.axis).source
        return (source, run.arm.grows_at, run.seed, run.source_rate, run.arm.baseline)

    return run.arm.baseline == "none" and shared_start(run) in map(shared_start, taken)


def _key(run: Run) -> tuple[str, int, float, float, float]:
    return (run.arm.key, run.seed, run.source_rate, run.rate, run.share)
