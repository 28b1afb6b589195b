"""Noise that makes copies differ and leaves the function as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, along, runs_of
from growlm.growth.growth_rng import ODD_STD, Draws
from growlm.growth.transforms.reconstruction import NOISE_ROUNDINGS, Reconstruction
from growlm.growth.transforms.scale_factors import Factors
from growlm.growth.transforms.tensor_transforms import Piece, matrix_std


@dataclass(frozen=True)
class Noise(Piece):
    """Noise in the columns of copies that sums to zero over the copies of each source, row by row.

    The copies carry equal activations, so it cancels in the function while it makes the copies differ. Its
    standard deviation is capped at that of the matrix's own entries: larger noise amplifies the rounding
    differences between copies, layer after layer. It is uniform, of 128 levels, where no channel has more than two
    copies, else normal.

    Args:
        dim: The dimension that reads the grown axis.
        channels: The axis's map.
        std: Standard deviation before the cap; without effect with `snr_db`.
        snr_db: Signal to noise ratio: the standard deviation is the matrix's own times 10**(-snr_db / 20)
            (HyperCloning, Samragh et al. 2024, arXiv 2409.12903, section 3.2).
        key: (operator index, new tensor name).
        alike: (dimension, size), where entries beyond that size repeat those before it: the deviation of the whole
            is had from a part.
    """

    dim: int
    channels: ChannelMap
    std: float
    snr_db: float | None
    key: tuple[int, str]
    alike: tuple[int, int] | None = None

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Add the noise."""
        if self.channels.most_copies < 2:
            return x
        own = matrix_std(x if self.alike is None else x.narrow(self.alike[0], 0, self.alike[1]))
        below = None if self.snr_db is None else 10 ** (-self.snr_db / 20)
        sigma = own.clamp(max=self.std) if below is None else own * below
        draws.noise[self.key] = {
            "sigma": float(sigma.max()),
            "capped": self.snr_db is None and bool((own < self.std).any()),
        }
        self._add(x, sigma.to(x), draws)
        return x

    def _add(self, x: Tensor, sigma: Tensor, draws: Draws) -> None:
        """Add noise of deviation `sigma`, of all or of each member of a stack, block by block."""
        stacked = x.ndim >= 3 and self.dim > 0
        dim = self.dim - x.ndim  # of a member too
        pairs = self.channels.twins if self.channels.most_copies <= 2 else None
        count = x.shape[dim] if pairs is None else len(pairs)
        runs = [] if pairs is None else runs_of(torch.arange(count), *pairs.T)
        if pairs is not None and x.ndim >= 3 and not stacked:
            sigma = sigma[pairs[:, 0]]  # over the members

        def add_balanced(part: Tensor, numbers: Tensor, member: int) -> None:
            self._add_balanced(part, numbers.mul_(sigma[member] if stacked else sigma), dim)

        def add_opposite(part: Tensor, numbers: Tensor, member: int) -> None:
            factor = (sigma[member] if stacked else sigma) * (0.5**0.5 / ODD_STD)
            if factor.numel() == 1:
                self._add_opposite(part, numbers, float(factor), dim, runs)
            else:
                self._add_opposite(part, numbers.mul_(factor), 1.0, dim, runs)

        add, odd = (add_balanced, False) if pairs is None else (add_opposite, True)
        draws.blocks(x, self.dim, count, "noise", self.key, add, stacked=stacked, odd=odd)

    def _add_opposite(
        self, x: Tensor, noise: Tensor, factor: float, dim: int, runs: list[tuple[int, ...]]
    ) -> None:
        """One copy gets the noise, the other its negative: as noise less its mean over both, of half the draws."""
        for start, first, second, size in runs:
            values = noise.narrow(dim, start, size)
            x.narrow(dim, first, size).add_(values, alpha=factor)
            x.narrow(dim, second, size).sub_(values, alpha=factor)

    def _add_balanced(self, x: Tensor, noise: Tensor, dim: int) -> None:
        copies = self.channels.copies()
        mean = self.channels.sum_copies(noise, dim)
        noise.sub_(self.channels.select(mean, dim).div_(along(copies.clamp(min=1), dim, x)))
        noise.masked_fill_(along(copies < 2, dim, x).bool(), 0.0)  # fillers' is what memory held
        x.add_(noise)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Nothing: the gradient is as it was."""
        return x

    def factors(self, factors: Factors) -> Factors:
        """As they were."""
        return factors

    def undo(self, found: Reconstruction) -> None:
        """Copies differ, and only their sum is known: the step that made them is told so."""
        found.noisy.add(self.dim)
        if self.channels.most_copies > 2:
            largest = float(matrix_std(found.x).max())  # no less than without the noise
            cap = self.std if self.snr_db is None else largest * 10 ** (-self.snr_db / 20)
            found.floor += NOISE_ROUNDINGS * found.unit * min(largest, cap)

    def adds_noise_along(self, dim: int) -> bool:
        """Along its own."""
        return dim == self.dim


@dataclass(frozen=True)
class TieBreak(Piece):
    """Noise on all copies but the first of each member: copies of a router's row stop tying. Not lossless.

    Args:
        channels: The axis of the members, along dimension 0.
        std: Standard deviation.
        key: (operator index, new tensor name).
    """

    channels: ChannelMap
    std: float
    key: tuple[int, str]

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Add the noise."""
        noise = draws.normal(tuple(x.shape), "ties", self.key).to(x).mul_(self.std)
        noise.mul_(along((~self.channels.is_first_copy).to(x.dtype), 0, x))
        return x.add_(noise)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Nothing."""
        return x

    def factors(self, factors: Factors) -> Factors:
        """As they were."""
        return factors

    def undo(self, found: Reconstruction) -> None:
        """Copies but the first must be as near to it as the noise allows; they are not known any better."""
        further = ~self.channels.is_first_copy.to(found.x.device)
        first = self.channels.first_of_each(found.x, 0)
        distance = found.x - self.channels.select(first, 0)
        found.require_drawn(distance[further], self.std, "a router row is too far from its source")
        found.x = found.x.clone()
        found.x[further] = torch.nan
        found.is_partial = True

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """All copies but the first."""
        return mask | along(~self.channels.is_first_copy, 0, mask)
