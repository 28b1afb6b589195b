"""Pieces that only upcycling needs: cutting a block into finer experts, re-drawing some of their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, along
from growlm.growth.growth_rng import Draws
from growlm.growth.transforms.reconstruction import Reconstruction, other_dims
from growlm.growth.transforms.scale_factors import DimFactors, Factors
from growlm.growth.transforms.tensor_transforms import Copy, Fill, Piece, Selection

EARLIER_ROUNDINGS = 40
"""Of an entry by the steps before units are drawn anew, at most; a unit drawn anew differs by far more."""


@dataclass(frozen=True)
class Cut(Piece):
    """The hidden units of a dense block, cut into equal shards that become experts.

    Args:
        dim: The hidden dimension of the dense weight.
        channels: Which shard each expert copies.
    """

    dim: int
    channels: ChannelMap

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Cut and copy; the experts come first."""
        return self.channels.select(self._shards(x), 0)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Cut and copy, times share**power, as if every expert got the same part of the tokens."""
        share = float(self.channels.shares[0])
        return self.channels.select(self._shards(x), 0).mul_(share**power)

    def factors(self, factors: Factors) -> Factors:
        """Those of the hidden units, mean over the shards."""
        shards = self.channels.old_size
        old = factors[self.dim]
        weight, gradient, norm_share = (
            v.view(shards, -1).mean(dim=0) for v in (old.weight, old.gradient, old.norm_share)
        )
        units = DimFactors(weight, gradient, norm_share, torch.ones(len(weight), dtype=torch.bool))
        experts = DimFactors.ones(self.channels.new_size)
        return (experts, *factors[: self.dim], units, *factors[self.dim + 1 :])

    def undo(self, found: Reconstruction) -> None:
        """Experts of one shard must be equal; the shards are joined."""
        found.merge_copies(self.channels, 0, None)
        found.replace(lambda x: x.movedim(0, self.dim).flatten(self.dim, self.dim + 1))

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """Free entries stay so, unless several experts must be equal."""
        mask = self.channels.select(self._shards(mask), 0)
        return mask & along(self.channels.copies() < 2, 0, mask)

    def _shards(self, x: Tensor) -> Tensor:
        # Made contiguous: copying what is scattered, once for every expert, takes much longer.
        return x.unflatten(self.dim, (self.channels.old_size, -1)).movedim(self.dim, 0).contiguous()


@dataclass(frozen=True)
class Redraw(Piece):
    """Some hidden units of each expert start anew: Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261).

    New values are normal with the mean and standard deviation of the values they replace (section 3.2 there).

    Args:
        dim: The hidden dimension of the stack.
        fraction: Of the units.
        shards: Which shard of the block each expert copies: experts of one shard are equal still.
        block: (operator index, block): chooses the units, which are the same in all tensors of an expert.
        key: (operator index, new tensor name): draws the values.
    """

    dim: int
    fraction: float
    shards: ChannelMap
    block: tuple[int, int]
    key: tuple[int, str]

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Re-draw."""
        count = round(self.fraction * x.shape[self.dim])
        if not count:
            return x
        dim = self.dim - x.ndim
        units = torch.stack([self._units(x, member, count, draws) for member in range(len(x))])
        means, stds = self._spreads(x, units)

        def put(part: Tensor, numbers: Tensor, member: int) -> None:
            numbers.mul_(stds[member]).add_(means[member])
            if dim == -1:  # `index_copy_` takes twice as long here
                part.scatter_(-1, units[member].expand_as(numbers), numbers)
            else:
                part.index_copy_(dim, units[member], numbers)

        draws.blocks(x, self.dim, count, "redrawn", self.key, put, stacked=True)
        return x

    def moment(self, x: Tensor, power: int) -> Tensor:
        """As it was: the second moment of a re-drawn unit is a better guess than none."""
        return x

    def factors(self, factors: Factors) -> Factors:
        """As they were."""
        return factors

    def undo(self, found: Reconstruction) -> None:
        """Units that were drawn anew can be anything; there must not be more of them, in all tensors the same."""
        count = round(self.fraction * found.x.shape[self.dim])
        if not count:
            return
        units = found.session.get(self.block)
        # A matrix of constant units does not tell which of them were drawn.
        if units is None or bool((units.sum(dim=1) < count).any()):
            units = self._find_drawn(found, count, units)
        found.session[self.block] = units
        drawn = self._entries(units, found.x)
        kept = found.x.masked_fill(drawn, 0.0)
        largest = max(float(x.abs().max()) for x in (kept, found.before()))
        found.require_drawn(found.x - kept, largest, "a drawn entry is out of range")
        found.x = found.x.masked_fill(drawn, torch.nan)
        found.is_partial = True

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """The units that were drawn."""
        count = round(self.fraction * mask.shape[self.dim])
        drawn = torch.zeros(len(mask), mask.shape[self.dim], dtype=torch.bool)
        for member in range(len(mask)):
            drawn[member, self._units(mask, member, count, draws)] = True
        return mask | self._entries(drawn, mask)

    def _entries(self, units: Tensor, x: Tensor) -> Tensor:
        """(experts, units), shaped to mask x."""
        shape = [1] * x.ndim
        shape[0], shape[self.dim] = units.shape
        return units.view(shape)

    def _find_drawn(self, found: Reconstruction, count: int, before: Tensor | None) -> Tensor:
        """(experts, units), which were drawn anew: all but those that are what they were made of.

        That is what the steps before make of the source; noise that they add must be summed over the copies, which
        cannot be done along the units. Where chance decides it, it is what several experts of a shard agree in.

        Args:
            found: The stack.
            count: Of an expert's drawn units.
            before: Those that another tensor of the experts has shown.
        """
        expected, magnitudes = found.before(), found.magnitudes()
        rest = other_dims(expected, (0, self.dim))
        known = (expected != 0).any(dim=rest) if rest else expected != 0
        if any(step.adds_noise_along(self.dim - 1) for step in found.earlier):
            known = torch.zeros_like(known)
        difference, sizes = found.x - expected, magnitudes + expected.abs()
        for dim, channels in earlier_copies(found.earlier).items():
            if dim + 1 != self.dim:
                difference = channels.sum_copies(difference, dim + 1)
                sizes = channels.sum_copies(sizes, dim + 1)
        is_exact = all(isinstance(step, Copy | Cut | Fill) for step in found.earlier)
        relative = found.unit * (found.roundings + (0 if is_exact else EARLIER_ROUNDINGS))
        over = difference.abs() > sizes * relative + found.floor
        kept = ~(over.any(dim=rest) if rest else over)
        if not known.all():
            kept = torch.where(known, kept, self._find_alike(found, magnitudes))
        drawn = ~kept if before is None else before | ~kept
        more = int((known & drawn).sum(dim=1).max()) - count
        if more > 0:
            found.fail(f"{more} hidden units differ from their source, beside {count} drawn anew")
        return drawn

    def _find_alike(self, found: Reconstruction, magnitudes: Tensor) -> Tensor:
        """(experts, units), which are the same in several experts of a shard."""
        x, shards = found.x, self.shards.source.tolist()
        alike = torch.zeros(len(x), x.shape[self.dim], dtype=torch.bool, device=x.device)
        rest = other_dims(x[0], [self.dim - 1])
        for first in range(len(x)):
            for other in range(first):
                if shards[first] == shards[other]:
                    sizes = magnitudes[first] + magnitudes[other]
                    allowed = sizes * (found.unit * found.roundings) + found.floor
                    over = (x[first] - x[other]).abs() > allowed
                    same = ~(over.any(dim=rest) if rest else over)
                    alike[first] |= same
                    alike[other] |= same
        return alike

    def _spreads(self, x: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """(experts,): mean and standard deviation of the entries of each expert's units, (experts, units)."""
        shards = self.shards.source.tolist()
        others = [dim for dim in range(x.ndim - 1) if dim != self.dim - 1]
        sums, squares = [], []  # of every unit of a shard
        for expert in (x[shards.index(shard)] for shard in range(self.shards.old_size)):
            norms = torch.linalg.vector_norm(expert, dim=others) if others else expert
            sums.append(expert.sum(dim=others) if others else expert)
            squares.append(norms.square())
        size = x.numel() // (len(x) * x.shape[self.dim]) * units.shape[1]
        means, mean_squares = (
            torch.stack(of_shards)[shards].gather(1, units).sum(dim=1) / size
            for of_shards in (sums, squares)
        )
        return means, (mean_squares - means.square()).clamp(min=0).sqrt()

    def _units(self, x: Tensor, member: int, count: int, draws: Draws) -> Tensor:
        chosen = draws.choice(x.shape[self.dim], count, *self.block, "redrawn units", member)
        return chosen.sort().values.to(x.device)


def earlier_copies(steps: Sequence[Piece]) -> dict[int, ChannelMap]:
    """By dimension, what all selections of a chain make of it together."""
    found: dict[int, ChannelMap] = {}
    for step in steps:
        if isinstance(step, Selection) and not step.inserts:
            dim, channels = step.dim, step.channels
            found[dim] = found[dim].then(channels) if dim in found else channels
    return found
