"""Check 3, symmetry breaking: copies differ enough to learn different things, and their noise cancels.

Duplicates (copies of one head, hidden unit, channel or expert) with equal weights and equal gradients stay
equal forever. Noise makes them differ. It must sum to zero over the copies of each source, or it changes the
function.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import get_full_tensor
from growlm.growth.growth_map import GrowthMap
from growlm.model.axes import Role, axes_table
from growlm.model.fsdp import without_backward_prefetch
from growlm.runtime.number_format import format_magnitude
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison, full_precision_eval, probe_loss
from growlm.verification.model_output import compute_logits

WEIGHT_THRESHOLD = 1e-10
"""The relative difference of weights up to which two duplicates count as equal."""
GRADIENT_THRESHOLD = 1e-9
"""The relative difference of gradients up to which two duplicates count as equal."""


def check_symmetry_breaking(
    old_model: nn.Module,
    new_model: nn.Module,
    probe: Tensor,
    *,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """Check that duplicates of the grown model differ and that their noise cancels.

    The arguments are those of `ModelComparison`.
    """
    return report_symmetry_breaking(
        ModelComparison(old_model, new_model, probe, growth_map=growth_map)
    )


@dataclass
class DuplicatePairCounts:
    """Counts of duplicate pairs along one axis."""

    pairs: int = 0
    equal: int = 0
    """Pairs with equal weights and equal gradients: they will stay equal."""
    unexercised: int = 0
    """Pairs with equal weights and no gradient on the probe, about which nothing is known."""
    weight_difference: float = 0.0
    """The largest relative difference of weights, averaged over the pairs."""
    gradient_difference: float = 0.0
    """The largest relative difference of gradients, averaged over the pairs."""

    @property
    def is_finite(self) -> bool:
        """Whether all differences are finite."""
        return math.isfinite(self.weight_difference) and math.isfinite(self.gradient_difference)


def report_symmetry_breaking(
    comparison: ModelComparison, unequal_moments: bool = False
) -> CheckReport:
    """Report the symmetry check for models that have been compared already.

    Computes one gradient of the grown model on the probe.

    Args:
        comparison: Comparison of the models.
        unequal_moments: Whether the optimizer begins with different moments for first copies than for the
            others.
    """
    found = comparison.weight_faults
    off = [fault for fault in found.faults if fault.is_in_sum]
    if off:
        summary = (
            f"copies do not add up to their source: {off[0]}; likely cause: noise that does not cancel over the "
            "copies, or columns not divided by the number of copies"
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
        summary = f"weights or gradients of duplicates in {', '.join(nonfinite)} are not finite"
        return CheckReport("symmetry", Status.FAILED, summary, figures)
    if not counts:
        summary = "this growth makes no duplicates"
        return CheckReport("symmetry", Status.NOT_APPLICABLE, summary, figures)
    equal = {axis: count.equal for axis, count in counts.items() if count.equal}
    if equal and unequal_moments:
        summary = "duplicates are equal, but unequal moments will make them diverge"
        return CheckReport("symmetry", Status.PASSED, summary, figures)
    if equal:
        parts = ", ".join(
            f"{n} of {counts[axis].pairs} in {_format_axis(axis)}" for axis, n in equal.items()
        )
        summary = f"duplicates will stay equal: {parts}; set noise_std above 0 to make them diverge"
        return CheckReport("symmetry", Status.FINDING, summary, figures)
    if all(count.unexercised == count.pairs for count in counts.values()):
        summary = "no gradient reaches the duplicates on the probe"
        return CheckReport("symmetry", Status.NOT_APPLICABLE, summary, figures)
    parts = ", ".join(
        f"{_format_axis(axis)} {count.pairs} pairs (weights {format_magnitude(count.weight_difference)}, "
        f"gradients {format_magnitude(count.gradient_difference)})"
        for axis, count in counts.items()
    )
    return CheckReport("symmetry", Status.PASSED, f"duplicates differ: {parts}", figures)


def _format_axis(axis: str) -> str:
    return axis.replace("_", " ")


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _count_duplicates(comparison: ModelComparison) -> dict[str, DuplicatePairCounts]:
    model = comparison.new_model
    pairs_by_axis = {
        axis: channels.duplicate_pairs for axis, channels in comparison.growth_map.axes.items()
    }
    pairs_by_axis = {axis: pairs for axis, pairs in pairs_by_axis.items() if len(pairs)}
    if not pairs_by_axis:
        return {}  # saves the gradient, which is not cheap for a big model
    model.zero_grad(set_to_none=True)
    with full_precision_eval(model), torch.enable_grad(), without_backward_prefetch(model):
        probe_loss(compute_logits(model, comparison.probe), comparison.probe).backward()
    units = {axis: comparison.new_config.axis_unit(axis) for axis in pairs_by_axis}
    uses = {axis: _axis_uses_by_block(model, axis) for axis in pairs_by_axis}
    try:
        return {
            axis: _count_axis(_dtype(model), uses[axis], pairs, units[axis])
            for axis, pairs in pairs_by_axis.items()
            if uses[axis]
        }
    finally:
        model.zero_grad(set_to_none=True)


def _count_axis(
    dtype: torch.dtype,
    uses_by_block: dict[int | None, list[AxisUse]],
    duplicate_pairs: Tensor,
    unit: int,
) -> DuplicatePairCounts:
    count = DuplicatePairCounts()
    gradient_threshold = max(GRADIENT_THRESHOLD, 1e3 * torch.finfo(dtype).eps)
    weight_sum = gradient_sum = 0.0
    for uses in uses_by_block.values():
        weight, gradient, magnitude = (
            torch.stack(measures).amax(dim=0)
            for measures in zip(
                *(_measure_pairs(*use, duplicate_pairs, unit) for use in uses), strict=True
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
"""A parameter, its dimension along the axis, and whether the duplicates inside each expert are counted
separately."""


def _axis_uses_by_block(model: nn.Module, axis: str) -> dict[int | None, list[AxisUse]]:
    """Return the parameters along an axis: by block if the axis is inside blocks, else under the key None."""
    parameters = dict(model.named_parameters())
    found = [
        (name, row, dim)
        for name, row in axes_table(model).items()
        for dim, labeled in enumerate(row.label.dims)
        if labeled.axis == axis and name in parameters
    ]
    runs_through = any(row.block is None for _, row, _ in found)
    uses: dict[int | None, list[AxisUse]] = defaultdict(list)
    for name, row, dim in found:
        per_expert = not runs_through and axis != "experts" and row.label.has(Role.INDEX, "experts")
        block = None if runs_through else row.block
        uses[block].append((parameters[name], dim, per_expert))
    return uses


def _measure_pairs(
    parameter: Tensor, dim: int, per_expert: bool, duplicate_pairs: Tensor, unit_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pair's relative difference of weights and of gradients, and its largest gradient."""
    kept = {dim, 0} if per_expert else {dim}

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
    """Select members of x along `dim`; a view where they are neighbors, as in a doubled axis."""
    start = int(members[0])
    if torch.equal(members, torch.arange(start, start + len(members))):
        return x.narrow(dim, start, len(members))
    return x.index_select(dim, members.to(x.device))
