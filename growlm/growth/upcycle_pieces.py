"""Pieces that only upcycling needs: cutting a block into finer experts, re-drawing some of their units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.growth.channels import ChannelMap
from growlm.growth.draws import Draws
from growlm.growth.factors import DimFactors, Factors


@dataclass(frozen=True)
class Cut:
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

    def _shards(self, x: Tensor) -> Tensor:
        # Made contiguous: copying what is scattered, once for every expert, takes much longer.
        return x.unflatten(self.dim, (self.channels.old_size, -1)).movedim(self.dim, 0).contiguous()


@dataclass(frozen=True)
class Redraw:
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
