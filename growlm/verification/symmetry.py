"""Check 3, symmetry breaking: copies differ enough to learn different things, and their noise cancels.

Twins (copies of one head, hidden unit, channel or expert) that have equal weights and equal gradients stay equal
for ever. Noise tells them apart, and must sum to zero over the copies of each source, or it moves the function.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.distributed.dtensors import get_full_tensor
from growlm.growth.growth_map import GrowthMap
from growlm.model.axes import Role, axes_table, split_block_name
from growlm.model.fsdp import without_backward_prefetch
from growlm.model.transformer import TransformerLM
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison, full_precision_eval, probe_loss

WEIGHT_THRESHOLD = 1e-10
GRADIENT_THRESHOLD = 1e-9


def check_symmetry_breaking(
    old_model: TransformerLM,
    new_model: TransformerLM,
    probe: Tensor,
    *,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """See the module; arguments as `Comparison`."""
    return report_symmetry_breaking(
        ModelComparison(old_model, new_model, probe, growth_map=growth_map)
    )


@dataclass
class DuplicatePairCounts:
    """Pairs of twins along one axis."""

    pairs: int = 0
    equal: int = 0
    """Equal weights and equal gradients: they will stay equal."""
    unexercised: int = 0
    """Equal weights, and no gradient on the probe to tell."""
    weight_difference: float = 0.0
    """Largest relative difference of weights, mean over the pairs."""
    gradient_difference: float = 0.0
    """Likewise of gradients."""

    @property
    def is_finite(self) -> bool:
        """Whether no NaN and no infinity was met."""
        return math.isfinite(self.weight_difference) and math.isfinite(self.gradient_difference)


def report_symmetry_breaking(
    comparison: ModelComparison, unequal_moments: bool = False
) -> CheckReport:
    """The check on models that are compared already. Needs one gradient of the grown model on the probe.

    Args:
        comparison: The models.
        unequal_moments: The optimizer begins with other moments for first copies than for the others.
    """
    found = comparison.weight_faults
    off = [fault for fault in found.faults if fault.is_in_sum]
    if off:
        summary = (
            f"copies do not add up to their source: {off[0]}; likely cause: noise that does not cancel over the "
            "copies, or columns not divided"
        )
        figures = {"noise_residue": found.noise_residue, "tensors": [fault.tensor for fault in off]}
        return CheckReport("symmetry", Status.FAILED, summary, figures)
    counts = _count_duplicates(comparison)
    figures = {
        "noise_residue": found.noise_residue,
        "axes": {axis: vars(count) for axis, count in counts.items()},
    }
    nonfinite = [_format_axis(axis) for axis, count in counts.items() if not count.is_finite]
    if nonfinite:
        summary = f"weights or gradients of twins in {', '.join(nonfinite)} are not finite"
        return CheckReport("symmetry", Status.FAILED, summary, figures)
    if not counts:
        return CheckReport("symmetry", Status.NOT_APPLICABLE, "this growth makes no twins", figures)
    equal = {axis: count.equal for axis, count in counts.items() if count.equal}
    if equal and unequal_moments:
        summary = "twins are equal, and unequal moments will part them"
        return CheckReport("symmetry", Status.PASSED, summary, figures)
    if equal:
        parts = ", ".join(
            f"{n} of {counts[axis].pairs} in {_format_axis(axis)}" for axis, n in equal.items()
        )
        summary = f"twins will stay equal: {parts}; set noise_std above 0 to let them part"
        return CheckReport("symmetry", Status.FINDING, summary, figures)
    if all(count.unexercised == count.pairs for count in counts.values()):
        summary = "no gradient reaches the twins on the probe"
        return CheckReport("symmetry", Status.NOT_APPLICABLE, summary, figures)
    parts = ", ".join(
        f"{_format_axis(axis)} {count.pairs} pairs (weights {count.weight_difference:.1e}, "
        f"gradients {count.gradient_difference:.1e})"
        for axis, count in counts.items()
    )
    return CheckReport("symmetry", Status.PASSED, f"twins differ: {parts}", figures)


def _format_axis(axis: str) -> str:
    return axis.replace("_", " ")


def _dtype(model: TransformerLM) -> torch.dtype:
    return next(model.parameters()).dtype


def _count_duplicates(comparison: ModelComparison) -> dict[str, DuplicatePairCounts]:
    model = comparison.new_model
    twins = {
        axis: channels.duplicate_pairs for axis, channels in comparison.growth_map.axes.items()
    }
    twins = {axis: pairs for axis, pairs in twins.items() if len(pairs)}
    if not twins:
        return {}  # the gradient of a big model is not cheap
    model.zero_grad(set_to_none=True)
    with full_precision_eval(model), torch.enable_grad(), without_backward_prefetch(model):
        probe_loss(model(comparison.probe), comparison.probe).backward()
    try:
        return {axis: _count_axis(model, axis, pairs) for axis, pairs in twins.items()}
    finally:
        model.zero_grad(set_to_none=True)


def _count_axis(model: TransformerLM, axis: str, duplicate_pairs: Tensor) -> DuplicatePairCounts:
    count = DuplicatePairCounts()
    unit = model.config.axis_unit(axis)
    gradient_threshold = max(GRADIENT_THRESHOLD, 1e3 * torch.finfo(_dtype(model)).eps)
    weight_sum = gradient_sum = 0.0
    for touching in _axis_uses_by_block(model, axis).values():
        weight, gradient, magnitude = (
            torch.stack(measures).amax(dim=0)
            for measures in zip(
                *(_measure_pairs(*t, duplicate_pairs, unit) for t in touching), strict=True
            )
        )
        alike = (weight <= WEIGHT_THRESHOLD) & (gradient <= gradient_threshold)
        silent = alike & (magnitude == 0)
        count.pairs += alike.numel()
        count.unexercised += int(silent.sum())
        count.equal += int((alike & ~silent).sum())
        weight_sum += float(weight.sum())
        gradient_sum += float(gradient.sum())
    count.weight_difference = weight_sum / count.pairs
    count.gradient_difference = gradient_sum / count.pairs
    return count


AxisUse = tuple[Tensor, int, bool]
"""A parameter, its dimension along the axis, and whether its experts' twins are told apart."""


def _axis_uses_by_block(model: TransformerLM, axis: str) -> dict[int | None, list[AxisUse]]:
    """What an axis touches: per block where it lives inside blocks, all together where it runs through."""
    parameters = dict(model.named_parameters())
    found = [
        (name, row, dim)
        for name, row in axes_table(model).items()
        for dim, labelled in enumerate(row.label.dims)
        if labelled.axis == axis and name in parameters
    ]
    runs_through = any(split_block_name(name)[0] is None for name, _, _ in found)
    places: dict[int | None, list[AxisUse]] = defaultdict(list)
    for name, row, dim in found:
        apart = not runs_through and axis != "experts" and row.label.has(Role.INDEX, "experts")
        place = None if runs_through else split_block_name(name)[0]
        places[place].append((parameters[name], dim, apart))
    return places


def _measure_pairs(
    parameter: Tensor, dim: int, experts_apart: bool, duplicate_pairs: Tensor, unit_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Relative difference of weights, of gradients, and largest gradient, of each pair of twins."""
    kept = {dim, 0} if experts_apart else {dim}

    def by_pair(x: Tensor) -> Tensor:
        others = [d for d in range(x.ndim) if d not in kept]
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=others) if others else x.abs()
        return largest.unflatten(-1, (-1, unit_size)).amax(dim=-1)

    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        return _select_members(x, dim, duplicate_pairs[:, 0]), _select_members(
            x, dim, duplicate_pairs[:, 1]
        )

    def relative(x: Tensor) -> Tensor:
        first, second = pair(x)
        mean = torch.linalg.vector_norm(x, ord=1) / x.numel()
        return by_pair(first - second) / mean.clamp(min=1e-30)

    weight = relative(get_full_tensor(parameter.detach()))
    gradient = get_full_tensor(
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    )
    magnitude = torch.maximum(*map(by_pair, pair(gradient)))
    return weight, relative(gradient), magnitude


def _select_members(x: Tensor, dim: int, members: Tensor) -> Tensor:
    """Members of x along `dim`; without a copy where they are neighbours, as in a doubled axis."""
    start = int(members[0])
    if torch.equal(members, torch.arange(start, start + len(members))):
        return x.narrow(dim, start, len(members))
    return x.index_select(dim, members.to(x.device))
