"""Compare what runs cost to reach the same loss.

The target loss is the highest of the finished runs' lowest losses, so that each of them reached it. The validation
loss is used if every run was validated often enough, interpolated linearly; otherwise the smoothed training loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from growlm.reporting.html.curves import finite_or_none, smooth_losses, smoothing_radius
from growlm.reporting.html.sweep_parameters import flatten_settings
from growlm.reporting.reading.history_reader import COUNTER_FIELDS
from growlm.reporting.reading.run_files import Run

MIN_VALIDATIONS = 8
"""Validations at different steps that a validation curve needs."""
COST_AXES = ("flops", "tokens", "seconds")
SETTINGS_THAT_AFFECT_LOSS = ("data", "tokenizer", "sequence_length")
"""Settings that must agree for losses to be comparable, except `data.path`, which is only a location."""

CurvePoint = tuple[float | None, dict[str, float]]
"""A loss and the costs up to where it was measured."""


@dataclass
class RunSavings:
    """Costs of a run until it reached the target loss."""

    run: Run
    costs: dict[str, float] | None
    """Costs by `flops`, `tokens` and `seconds`; None if the run never reached the loss."""
    has_curve: bool = True
    """Whether the run has enough rows to smooth."""
    saved_fractions: dict[str, dict[str, float]] = field(default_factory=dict)
    """Fraction of the reference's cost that this run saved, by reference and cost; negative if it cost more."""


@dataclass
class Savings:
    """Comparison of runs at equal loss."""

    target_loss: float
    loss_description: str
    """Description of the loss: which one, and how it was smoothed."""
    runs: list[RunSavings]
    references: dict[str, str]
    """Description of each reference."""


def compute_savings(runs: Sequence[Run]) -> Savings | str:
    """Compare the costs of runs to reach the same loss.

    Returns:
        The comparison, or the reason why there is none.
    """
    with_rows = [run for run in runs if run.history.rows]
    if len(with_rows) < 2:
        return "needs at least two runs that have trained"
    if differing := _differing_settings(with_rows):
        return f"the runs differ in {', '.join(differing)}, so their losses are not comparable"
    curves, measured_as = _loss_curves(with_rows)
    finished = [run for run in with_rows if run.summary is not None] or with_rows
    # Runs with too few rows to smooth have no curve and do not set the target.
    lowest = [_lowest_loss(curves[id(run)]) for run in finished if curves[id(run)]]
    known = [loss for loss in lowest if loss is not None]
    if not known:
        return "no run has a finite loss"
    target = max(known)
    reached = [RunSavings(run, _costs_to_reach(curves[id(run)], target)) for run in with_rows]
    for one in reached:
        one.has_curve = bool(curves[id(one.run)])
    references = _references(reached)
    for one in reached:
        for name, reference in references.items():
            one.saved_fractions |= _saved_fractions(one, name, reference)
    return Savings(
        target_loss=target,
        loss_description=measured_as,
        runs=reached,
        references={name: _describe_reference(name, one) for name, one in references.items()},
    )


def _differing_settings(runs: Sequence[Run]) -> list[str]:
    configs = [
        {
            key: value
            for key, value in flatten_settings(run.config).items()
            if key.partition(".")[0] in SETTINGS_THAT_AFFECT_LOSS and key != "data.path"
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]


def _loss_curves(runs: Sequence[Run]) -> tuple[dict[int, list[CurvePoint]], str]:
    fewest = min(len({line["global_step"] for line in run.history.validations}) for run in runs)
    if fewest >= MIN_VALIDATIONS:
        curves = {
            id(run): [
                (finite_or_none(line["val_loss"]), _line_costs(line))
                for line in run.history.validations
            ]
            for run in runs
        }
        return curves, "validation loss; between two validations, on a straight line"
    radius = smoothing_radius(min(len(run.history.rows) for run in runs))
    curves = {}
    for run in runs:
        smoothed = smooth_losses([finite_or_none(row["loss"]) for row in run.history.rows], radius)
        # Near the ends, windows have few rows, and noise alone could reach the target.
        inside = range(radius, len(smoothed) - radius)
        curves[id(run)] = [(smoothed[i], _line_costs(run.history.rows[i])) for i in inside]
    return curves, (
        f"training loss, the mean of a logged step and {radius} on either side "
        f"(validations at fewer than {MIN_VALIDATIONS} steps)"
    )


def _line_costs(line: dict[str, Any]) -> dict[str, float]:
    return {cost: line[COUNTER_FIELDS[cost]] for cost in COST_AXES}


def _lowest_loss(points: Sequence[CurvePoint]) -> float | None:
    return min((loss for loss, _ in points if loss is not None), default=None)


def _costs_to_reach(points: Sequence[CurvePoint], target: float) -> dict[str, float] | None:
    before: CurvePoint | None = None
    for point in points:
        loss, costs = point
        if loss is None:
            continue
        if loss <= target:
            if before is None or before[0] is None or before[0] == loss:
                return costs
            fraction = (before[0] - target) / (before[0] - loss)
            return {
                key: before[1][key] + fraction * (costs[key] - before[1][key]) for key in COST_AXES
            }
        before = point
    return None


def _references(reached: Sequence[RunSavings]) -> dict[str, RunSavings]:
    """Return the cheapest baseline of each kind; without baselines, the most expensive run."""
    candidates = [one for one in reached if one.costs is not None]
    references: dict[str, RunSavings] = {}
    several_plans = len({one.run.baseline.get("of") for one in candidates if one.run.baseline}) > 1
    for one in sorted(candidates, key=lambda one: (one.costs or {})["flops"]):
        if one.run.baseline:
            references.setdefault(_baseline_label(one.run, several_plans), one)
    if not references and candidates:
        references["the most expensive"] = max(
            candidates, key=lambda one: (one.costs or {})["flops"]
        )
    return references


def _baseline_label(run: Run, with_plan: bool) -> str:
    kind, plan = run.baseline.get("kind"), run.baseline.get("of")
    return f"{kind} ({plan})" if with_plan else str(kind)


def _saved_fractions(
    one: RunSavings, name: str, reference: RunSavings
) -> dict[str, dict[str, float]]:
    if one is reference or one.costs is None or reference.costs is None:
        return {}
    # A baseline belongs to one plan, and only grown runs of that plan are compared with it.
    if reference.run.baseline and (
        one.run.baseline or reference.run.baseline.get("of") != one.run.plan_name
    ):
        return {}
    fractions = {
        key: 1 - one.costs[key] / reference.costs[key]
        for key in COST_AXES
        if reference.costs[key] > 0
    }
    return {name: fractions}


def _describe_reference(name: str, reference: RunSavings) -> str:
    return f"{name}: {reference.run.name}"
