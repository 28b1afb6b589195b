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
        block: (operator index, block): chooses the units, which are the same in all tensors of an expert.
        key: (operator index, new tensor name): draws the values.
    """

    dim: int
    fraction: float
    block: tuple[int, int]
    key: tuple[int, str]

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Re-draw."""
        for member, expert in enumerate(x):
            units = self._units(expert, member, draws)
            if len(units):
                self._redraw(expert, units, draws, member)
        return x

    def _redraw(self, expert: Tensor, units: Tensor, draws: Draws, member: int) -> None:
        dim = self.dim - 1
        size = expert.numel() // expert.shape[dim] * len(units)
        others = [other for other in range(expert.ndim) if other != dim]
        # By units, not of the gathered entries, which takes twice as long.
        sums = (expert.sum(dim=others) if others else expert)[units].sum()
        norms = torch.linalg.vector_norm(expert, dim=others) if others else expert
        squares = norms[units].square().sum()
        mean = sums / size
        std = (squares / size - mean.square()).clamp(min=0).sqrt()

        def put(part: Tensor, numbers: Tensor) -> None:
            part.index_copy_(dim, units, numbers.mul_(std).add_(mean))

        draws.blocks(expert, dim, len(units), "redrawn", self.key, member, put)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """As it was: the second moment of a re-drawn unit is a better guess than none."""
        return x

    def factors(self, factors: Factors) -> Factors:
        """As they were."""
        return factors

    def _units(self, expert: Tensor, member: int, draws: Draws) -> Tensor:
        size = expert.shape[self.dim - 1]
        count = round(self.fraction * size)
        return draws.choice(size, count, *self.block, "redrawn units", member).to(expert.device)
