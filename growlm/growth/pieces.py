"""The closed set of things growth does to a tensor: copy, split, fill, scale, noise.

Each piece knows what it does to a weight and what that does to the weight's gradient, so the optimizer's
moments follow from the same chain: `moment(x, power)` maps a running mean of gradient**power. The rule behind
every gradient factor: if an entry was multiplied by a and its output is read with a share s, its gradient is
multiplied by s / a (LEMON, Wang et al. 2023, arXiv 2310.07999; Staged Training, Shen et al. 2022, 2203.06211).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from growlm.growth.channels import ChannelMap
from growlm.model.draws import normal


@dataclass
class Draws:
    """Where the random entries of one growth come from, and what was drawn.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone.
    """

    seed: int
    boundary_index: int = 0
    noise: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (of a stack, the largest), and whether it was `capped`."""

    def normal(self, shape: tuple[int, ...], purpose: str, key: tuple[int, str]) -> Tensor:
        """Standard normal numbers in fp32; a stack of matrices gets one draw per matrix."""
        seeds = (self.seed, self.boundary_index, *key, purpose)
        if len(shape) < 3:
            return normal(shape, *seeds)
        out = torch.empty(shape)
        for member in range(shape[0]):
            out[member] = normal(shape[1:], *seeds, member)
        return out


class Piece(Protocol):
    """A step of the chain that makes a new tensor from an old one."""

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """What the step does to a weight."""

    def moment(self, x: Tensor, power: int) -> Tensor:
        """What it does to a running mean of gradient**power."""


def _along(vector: Tensor, dim: int, x: Tensor) -> Tensor:
    """`vector` shaped to multiply `x` along `dim`, in x's precision."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return vector.to(device=x.device, dtype=x.dtype).view(shape)


@dataclass(frozen=True)
class Copy:
    """New entry j along `dim` is old entry s(j); each copy's gradient is its share of the source's.

    Args:
        dim: Dimension.
        channels: The map.
        inserts: The old tensor lacks the dimension (a dense block's weight becoming a stack of experts).
    """

    dim: int
    channels: ChannelMap
    inserts: bool = False

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Copy."""
        return self.channels.select(x.unsqueeze(self.dim) if self.inserts else x, self.dim)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Copy, times share**power."""
        x = self.channels.select(x.unsqueeze(self.dim) if self.inserts else x, self.dim)
        return x.mul_(_along(self.channels.shares**power, self.dim, x))


@dataclass(frozen=True)
class Split:
    """New column j is old column s(j) times its share; the copies read equal inputs, so gradients are whole."""

    dim: int
    channels: ChannelMap

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Copy, times share."""
        x = self.channels.select(x, self.dim)
        return x.mul_(_along(self.channels.shares, self.dim, x))

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Copy."""
        return self.channels.select(x, self.dim)


@dataclass(frozen=True)
class Fill:
    """Filler entries along `dim` get values of their own.

    Args:
        dim: Dimension.
        channels: The map whose fillers are filled.
        kind: `zero`; `mean` over the first full copy; `random`, normal with the standard deviation of the matrix's
            other entries.
        key: (operator index, new tensor name), for `random`.
    """

    dim: int
    channels: ChannelMap
    kind: str
    key: tuple[int, str] = (0, "")

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Fill."""
        fillers = self._fillers(x)
        if self.kind == "zero":
            return x.index_fill_(self.dim, fillers, 0.0)
        if self.kind == "mean":
            return self._put_mean(x, fillers)
        shape = list(x.shape)
        shape[self.dim] = len(fillers)
        drawn = draws.normal(tuple(shape), "filler", self.key).to(x)
        kept = x.narrow(self.dim, 0, self.channels.old_size)
        drawn.mul_(matrix_std(kept).to(x))
        return x.index_copy_(self.dim, fillers, drawn)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Zero for the first moment, the mean of the other entries for the second.

        PyTorch keeps one step count per tensor, so a second moment of zero in a tensor with a past gets no
        bias correction and its first updates reach several times the learning rate.
        """
        fillers = self._fillers(x)
        if power == 1:
            return x.index_fill_(self.dim, fillers, 0.0)
        return self._put_mean(x, fillers)

    def _fillers(self, x: Tensor) -> Tensor:
        return self.channels.is_filler.nonzero().squeeze(1).to(x.device)

    def _put_mean(self, x: Tensor, fillers: Tensor) -> Tensor:
        mean = x.narrow(self.dim, 0, self.channels.old_size).mean(dim=self.dim, keepdim=True)
        shape = list(x.shape)
        shape[self.dim] = len(fillers)
        return x.index_copy_(self.dim, fillers, mean.expand(shape).contiguous())


@dataclass(frozen=True)
class FillWhole:
    """The whole tensor is new: normal with standard deviation `std`, 0 for zeros; the past is forgotten."""

    shape: tuple[int, ...]
    std: float = 0.0
    key: tuple[int, str] = (0, "")

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Fill."""
        if self.std == 0.0:
            return x.new_zeros(self.shape)
        return draws.normal(self.shape, "fresh", self.key).mul_(self.std).to(x)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Zero."""
        return x.new_zeros(self.shape)


@dataclass(frozen=True)
class Forget:
    """The weight stays, its past does not: a second copy of a block is new to the optimizer."""

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Nothing."""
        return x

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Scale:
    """All entries times `factor`, where what follows undoes it: gradients divided by it."""

    factor: float

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Multiply."""
        return x * self.factor

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Divide."""
        return x / self.factor**power


@dataclass(frozen=True)
class Noise:
    """Noise in the columns of copies that sums to zero over the copies of each source, row by row.

    The copies carry equal activations, so it cancels in the function while it makes the copies differ. Its
    standard deviation is capped at that of the matrix's own entries: larger noise amplifies the rounding
    differences between copies, layer after layer.

    Args:
        dim: The dimension that reads the grown axis.
        channels: The axis's map.
        std: Standard deviation before the cap; without effect with `snr_db`.
        snr_db: Signal to noise ratio: the standard deviation is the matrix's own times 10**(-snr_db / 20)
            (HyperCloning, Samragh et al. 2024, arXiv 2409.12903, section 3.2).
        key: (operator index, new tensor name).
    """

    dim: int
    channels: ChannelMap
    std: float
    snr_db: float | None
    key: tuple[int, str]

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Add the noise."""
        own = matrix_std(x)
        below = None if self.snr_db is None else 10 ** (-self.snr_db / 20)
        sigma = own.clamp(max=self.std) if below is None else own * below
        draws.noise[self.key] = {
            "sigma": float(sigma.max()),
            "capped": self.snr_db is None and bool((own < self.std).any()),
        }
        noise = draws.normal(tuple(x.shape), "noise", self.key).to(x).mul_(sigma.to(x))
        copies = self.channels.copies().clamp(min=1)
        mean = self.channels.sum_copies(noise, self.dim)
        noise.sub_(self.channels.select(mean, self.dim).div_(_along(copies, self.dim, x)))
        noise.mul_(_along((copies > 1).to(x.dtype), self.dim, x))
        return x.add_(noise)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Nothing: the gradient is as it was."""
        return x


def matrix_std(x: Tensor) -> Tensor:
    """Standard deviation of each matrix of a stack, shaped to multiply it; of all entries below 3 dimensions."""
    if x.ndim < 3:
        return x.std(correction=0)
    return x.flatten(1).std(dim=1, correction=0).view(-1, *[1] * (x.ndim - 1))
