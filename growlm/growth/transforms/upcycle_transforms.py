"""Transforms for upcycling only: split a block into finer experts, and reinitialize some of their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.reconstruction import Reconstruction, other_dims
from growlm.growth.transforms.scale_factors import DimFactors, ScaleFactors
from growlm.growth.transforms.tensor_transforms import TensorTransform

MAX_EARLIER_ROUNDINGS = 40
"""The largest number of roundings of an entry before units are reinitialized; a reinitialized unit differs by
far more."""


@dataclass(frozen=True)
class SplitIntoExperts(TensorTransform):
    """The transform that splits the hidden units of a dense block into equal shards, which become experts.

    Args:
        dim: Hidden dimension of the dense weight.
        channels: Map from experts to shards.
    """

    dim: int
    channels: ChannelMap

    is_exact: ClassVar[bool] = True

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Split and copy the weight; the experts come first."""
        return self.channels.select(self._split_segments(x), 0)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Split and copy the moment, times share**power, as if every expert got the same part of the tokens."""
        share = float(self.channels.shares[0])
        return self.channels.select(self._split_segments(x), 0).mul_(share**power)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors with an expert dimension of ones; hidden units get the mean over the parts."""
        shards = self.channels.old_size
        old = factors[self.dim]
        weight, gradient, norm_share = (
            v.view(shards, -1).mean(dim=0) for v in (old.weight, old.gradient, old.norm_share)
        )
        units = DimFactors(weight, gradient, norm_share, torch.ones(len(weight), dtype=torch.bool))
        experts = DimFactors.ones(self.channels.new_size)
        return (experts, *factors[: self.dim], units, *factors[self.dim + 1 :])

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that experts of one shard are equal, and join the shards."""
        reconstruction.merge_copies(self.channels, 0, None)
        reconstruction.apply(lambda x: x.movedim(0, self.dim).flatten(self.dim, self.dim + 1))

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return the mask of free entries; entries that several experts share are not free."""
        mask = self.channels.select(self._split_segments(mask), 0)
        return mask & broadcast_along(self.channels.copy_counts() < 2, 0, mask)

    def _split_segments(self, x: Tensor) -> Tensor:
        # Contiguous, because copying scattered memory once for every expert takes much longer.
        return x.unflatten(self.dim, (self.channels.old_size, -1)).movedim(self.dim, 0).contiguous()


@dataclass(frozen=True)
class ReinitializeUnits(TensorTransform):
    """The transform that reinitializes some hidden units of each expert.

    This is Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261). New values are normal, with the mean and
    standard deviation of the values they replace (section 3.2 there).

    Args:
        dim: Hidden dimension of the stack.
        fraction: Fraction of the units.
        segments: Map from experts to shards of the block: experts of one shard are still equal.
        unit_rng_key: (operator index, block): chooses the units, which are the same in all tensors of an
            expert.
        rng_key: (operator index, new tensor name): draws the values.
    """

    dim: int
    fraction: float
    segments: ChannelMap
    unit_rng_key: tuple[int, int]
    rng_key: tuple[int, str]

    makes_copies_differ: ClassVar[bool] = True

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Reinitialize the chosen units."""
        count = round(self.fraction * x.shape[self.dim])
        if not count:
            return x
        dim = self.dim - x.ndim
        units = torch.stack([self._choose_units(x, member, count, rng) for member in range(len(x))])
        means, stds = self._unit_mean_and_std(x, units)

        def put(part: Tensor, numbers: Tensor, member: int) -> None:
            numbers.mul_(stds[member]).add_(means[member])
            if dim == -1:  # `index_copy_` would take twice as long
                part.scatter_(-1, units[member].expand_as(numbers), numbers)
            else:
                part.index_copy_(dim, units[member], numbers)

        rng.draw_in_blocks(x, self.dim, count, "redrawn", self.rng_key, put, stacked=True)
        return x

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return the moment unchanged: the second moment of a reinitialized unit is a better guess than none."""
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors unchanged."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that only the reinitialized units changed, the same in all tensors; mark them as unknown."""
        count = round(self.fraction * reconstruction.x.shape[self.dim])
        if not count:
            return
        units = reconstruction.shared_state.get(self.unit_rng_key)
        # A matrix of constant units does not show which of them were reinitialized.
        if units is None or bool((units.sum(dim=1) < count).any()):
            units = self._find_reinitialized(reconstruction, count, units)
        reconstruction.shared_state[self.unit_rng_key] = units
        drawn = self._expand_unit_mask(units, reconstruction.x)
        kept = reconstruction.x.masked_fill(drawn, 0.0)
        largest = max(float(x.abs().max()) for x in (kept, reconstruction.rebuild_input()))
        reconstruction.require_in_normal_range(
            reconstruction.x - kept, largest, "a random entry is out of range"
        )
        reconstruction.x = reconstruction.x.masked_fill(drawn, torch.nan)
        reconstruction.has_unknown_entries = True

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return the mask with the reinitialized units added."""
        count = round(self.fraction * mask.shape[self.dim])
        drawn = torch.zeros(len(mask), mask.shape[self.dim], dtype=torch.bool)
        for member in range(len(mask)):
            drawn[member, self._choose_units(mask, member, count, rng)] = True
        return mask | self._expand_unit_mask(drawn, mask)

    def _expand_unit_mask(self, units: Tensor, x: Tensor) -> Tensor:
        """Return the mask (experts, units), shaped to mask x."""
        shape = [1] * x.ndim
        shape[0], shape[self.dim] = units.shape
        return units.view(shape)

    def _find_reinitialized(
        self, reconstruction: Reconstruction, count: int, before: Tensor | None
    ) -> Tensor:
        """Return the mask (experts, units) of reinitialized units: those that differ from what they were made of.

        What they were made of is rebuilt from the source. Noise added on the way must be summed over the
        copies, which cannot be done along the units. If it depends on random numbers, units that several
        experts of a shard agree in count as kept.

        Args:
            reconstruction: Reconstruction of the stack.
            count: Number of reinitialized units per expert.
            before: Mask found from another tensor of the experts.
        """
        expected, magnitudes = reconstruction.rebuild_input(), reconstruction.magnitudes()
        rest = other_dims(expected, (0, self.dim))
        known = (expected != 0).any(dim=rest) if rest else expected != 0
        if any(step.adds_noise_along(self.dim - 1) for step in reconstruction.earlier_transforms):
            known = torch.zeros_like(known)
        difference, sizes = reconstruction.x - expected, magnitudes + expected.abs()
        for dim, channels in compose_selections(reconstruction.earlier_transforms).items():
            if dim + 1 != self.dim:
                difference = channels.sum_copies(difference, dim + 1)
                sizes = channels.sum_copies(sizes, dim + 1)
        is_exact = all(transform.is_exact for transform in reconstruction.earlier_transforms)
        relative = reconstruction.unit_roundoff * (
            reconstruction.num_roundings + (0 if is_exact else MAX_EARLIER_ROUNDINGS)
        )
        over = difference.abs() > sizes * relative + reconstruction.absolute_tolerance
        kept = ~(over.any(dim=rest) if rest else over)
        if not known.all():
            kept = torch.where(known, kept, self._find_equal_units(reconstruction, magnitudes))
        drawn = ~kept if before is None else before | ~kept
        more = int((known & drawn).sum(dim=1).max()) - count
        if more > 0:
            reconstruction.add_fault(
                f"{more} hidden units differ from their source, besides {count} reinitialized ones"
            )
        return drawn

    def _find_equal_units(self, reconstruction: Reconstruction, magnitudes: Tensor) -> Tensor:
        """Return the mask (experts, units) of units that are the same in several experts of a shard."""
        x, shards = reconstruction.x, self.segments.source.tolist()
        alike = torch.zeros(len(x), x.shape[self.dim], dtype=torch.bool, device=x.device)
        rest = other_dims(x[0], [self.dim - 1])
        for first in range(len(x)):
            for other in range(first):
                if shards[first] == shards[other]:
                    sizes = magnitudes[first] + magnitudes[other]
                    allowed = (
                        sizes * (reconstruction.unit_roundoff * reconstruction.num_roundings)
                        + reconstruction.absolute_tolerance
                    )
                    over = (x[first] - x[other]).abs() > allowed
                    same = ~(over.any(dim=rest) if rest else over)
                    alike[first] |= same
                    alike[other] |= same
        return alike

    def _unit_mean_and_std(self, x: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (experts,) of the entries of the given units (experts, units)."""
        shards = self.segments.source.tolist()
        others = [dim for dim in range(x.ndim - 1) if dim != self.dim - 1]
        sums, squares = [], []  # per shard, one number for every unit; fp64, as in matrix_std.py
        for expert in (x[shards.index(shard)].double() for shard in range(self.segments.old_size)):
            sums.append(expert.sum(dim=others) if others else expert)
            squares.append(expert.square().sum(dim=others) if others else expert.square())
        size = x.numel() // (len(x) * x.shape[self.dim]) * units.shape[1]
        means, mean_squares = (
            torch.stack(of_shards)[shards].gather(1, units).sum(dim=1) / size
            for of_shards in (sums, squares)
        )
        stds = (mean_squares - means.square()).clamp(min=0).sqrt()
        return means.to(x.dtype), stds.to(x.dtype)

    def _choose_units(self, x: Tensor, member: int, count: int, rng: GrowthRng) -> Tensor:
        chosen = rng.choice(x.shape[self.dim], count, *self.unit_rng_key, "redrawn units", member)
        return chosen.sort().values.to(x.device)


def compose_selections(transforms: Sequence[TensorTransform]) -> dict[int, ChannelMap]:
    """Return the composition of all selections along each dimension."""
    found: dict[int, ChannelMap] = {}
    for step in transforms:
        if (selection := step.plain_selection) is not None:
            dim, channels = selection.dim, selection.channels
            found[dim] = found[dim].then(channels) if dim in found else channels
    return found
