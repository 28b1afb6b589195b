"""What growth does to a tensor: copy, split, fill, scale.

Noise is in `noise.py`, what only experts need in `upcycle_pieces.py`.

Each piece knows what it does to a weight and what that does to the weight's gradient, so the optimizer's
moments follow from the same chain: `moment(x, power)` maps a running mean of gradient**power. The rule behind
every gradient factor: if an entry was multiplied by a and its output is read with a share s, its gradient is
multiplied by s / a (LEMON, Wang et al. 2023, arXiv 2310.07999; Staged Training, Shen et al. 2022, 2203.06211).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, along, select_along
from growlm.growth.growth_rng import Draws
from growlm.growth.transforms.reconstruction import Reconstruction, follows
from growlm.growth.transforms.scale_factors import DimFactors, Factors, no_factors, replaced


class Piece(Protocol):
    """A step of the chain that makes a new tensor from an old one."""

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """What the step does to a weight."""

    def moment(self, x: Tensor, power: int) -> Tensor:
        """What it does to a running mean of gradient**power."""

    def factors(self, factors: Factors) -> Factors:
        """The factors of each entry after it."""

    def undo(self, found: Reconstruction) -> None:
        """Check what the step guarantees of what it makes, and turn that into what it was made of.

        Args:
            found: What the step has made; changed.
        """

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """Return which entries can hold other numbers than they do, as far as `undo` can know.

        Args:
            mask: Likewise of what the step is given, bool.
            later: The steps after it.
            draws: Of the growth.
        """
        return mask

    def adds_noise_along(self, dim: int) -> bool:
        """Whether it makes the copies along a dimension differ."""
        return False

    def selects_along(self, dim: int) -> bool:
        """Whether it makes copies along a dimension."""
        return False


def select(pieces: Sequence[Selection], x: Tensor, power: int) -> Tensor:
    """Select along the dimension of every piece, in a moment of `power`, or in the weight itself (0); one pass."""
    factors = {}
    for piece in pieces:
        x = x.unsqueeze(piece.dim) if piece.inserts else x
        if exponent := piece.share_exponent(power):
            factors[piece.dim] = piece.channels.shares**exponent
    # The engine puts a Fill behind every selection that has fillers.
    return select_along(x, {piece.dim: piece.channels for piece in pieces}, factors)


@dataclass(frozen=True)
class Selection(Piece, ABC):
    """New entry j along `dim` is old entry s(j), times a power of its share.

    Args:
        dim: Dimension.
        channels: The map.
        inserts: The old tensor lacks the dimension (a dense block's weight becoming a stack of experts).
    """

    dim: int
    channels: ChannelMap
    inserts: bool = False

    @abstractmethod
    def share_exponent(self, power: int) -> int:
        """The power of the share: in a moment of `power`, or in the weight itself (0)."""

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Select."""
        return select([self], x, 0)

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Select."""
        return select([self], x, power)

    def undo(self, found: Reconstruction) -> None:
        """Copies must be equal, or sum to their source where they differ by noise."""
        for mean in self._means_before(found.earlier):
            roundings = mean_roundings(mean.channels.old_size, found.stored_as)
            found.note_means(mean.dim, roundings)
        exponent = self.share_exponent(0)
        factors = self.channels.shares**exponent if exponent else None
        if self.dim in found.noisy and self.channels.most_copies > 1:
            found.sum_copies(self.channels, self.dim, factors)
        else:
            found.merge_copies(self.channels, self.dim, factors)
        found.noisy.discard(self.dim)
        if self.inserts:
            found.replace(lambda x: x.squeeze(self.dim))

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """Free entries stay so, unless their copies must be equal."""
        mask = mask.unsqueeze(self.dim) if self.inserts else mask
        mask = mask.index_select(self.dim, self.channels.source.clamp(min=0))
        if follows(later, self.dim):
            return mask
        return mask & along(self.channels.copies() < 2, self.dim, mask)

    def selects_along(self, dim: int) -> bool:
        """Along its own."""
        return dim == self.dim

    def _means_before(self, earlier: Sequence[Piece]) -> list[Fill]:
        """Means along other dimensions that are taken after this selection, in one pass with it (`chain.py`)."""
        found = []
        for step in reversed(earlier):
            if isinstance(step, Fill):
                found += [step] if step.kind == "mean" and step.dim != self.dim else []
            elif not isinstance(step, Selection) or step.inserts:
                break
        return found

    @abstractmethod
    def factors(self, factors: Factors) -> Factors:
        """As in `Piece`."""


class Copy(Selection):
    """The weight is copied; each copy's gradient is its share of the source's."""

    def share_exponent(self, power: int) -> int:
        """A moment's own."""
        return power

    def factors(self, factors: Factors) -> Factors:
        """Gradients times share. None for an inserted dimension: which expert gets how much, tokens decide."""
        if self.inserts:
            new = DimFactors.ones(self.channels.new_size)
            return (*factors[: self.dim], new, *factors[self.dim :])
        new = factors[self.dim].selected(self.channels, gradient_shares=True)
        return replaced(factors, self.dim, new)


class Split(Selection):
    """The weight is divided among the copies; they read equal inputs, so gradients are whole."""

    def share_exponent(self, power: int) -> int:
        """1 in the weight, none in moments."""
        return int(power == 0)

    def factors(self, factors: Factors) -> Factors:
        """Weights times share."""
        new = factors[self.dim].selected(self.channels, weight_shares=True)
        return replaced(factors, self.dim, new)


@dataclass(frozen=True)
class Fill(Piece):
    """Filler entries along `dim` get values of their own.

    Args:
        dim: Dimension.
        channels: The map whose fillers are filled.
        kind: `zero`; `mean` over the first copies; `random`, normal with the standard deviation of the matrix's
            other entries.
        key: (operator index, new tensor name), for `random`.
    """

    dim: int
    channels: ChannelMap
    kind: str
    key: tuple[int, str] = (0, "")

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Fill."""
        if self.kind == "random":
            return self.draw(x, matrix_std(self.channels.first_copies(x, self.dim)), draws)
        return self._put(x, None if self.kind == "zero" else self._mean(x))

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Zero for the first moment, the mean of the other entries for the second.

        PyTorch keeps one step count per tensor, so a second moment of zero in a tensor with a past gets no
        bias correction and its first updates reach several times the learning rate.
        """
        return self._put(x, None if power == 1 else self._mean(x))

    def factors(self, factors: Factors) -> Factors:
        """Fillers have none already."""
        return factors

    def undo(self, found: Reconstruction) -> None:
        """Fillers must hold what they are filled with, or what can have been drawn."""
        x, dim = found.x, self.dim
        runs = self.channels.filler_runs
        if self.kind == "random":
            like = self.channels.first_copies(x, dim)
            std = matrix_std(like)
            for new, _, size in runs:
                fillers = x.narrow(dim, new, size)
                found.require_drawn(fillers, std, "a filler is out of range", like)
            return
        means = mean_sizes = torch.zeros((), dtype=x.dtype, device=x.device)
        roundings = 0.0
        if self.kind == "mean":
            means, mean_sizes = self._mean(x), self._mean(found.magnitudes())
            roundings = mean_roundings(self.channels.old_size, found.stored_as)
        for new, _, size in runs:
            part = partial(torch.narrow, dim=dim, start=new, length=size)
            found.require(
                part(x) - means,
                found.magnitudes(part) + mean_sizes,
                "a filler is not zero" if self.kind == "zero" else "a filler is not the mean",
                roundings,
            )

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """Those that are drawn."""
        mask = mask.clone()
        for new, _, size in self.channels.filler_runs:
            mask.narrow(self.dim, new, size).fill_(self.kind == "random")
        return mask

    def draw(self, x: Tensor, std: Tensor, draws: Draws) -> Tensor:
        """Fill at random with a standard deviation, that of all or of each member of a stack."""
        runs, stacked, dim = self.channels.filler_runs, x.ndim >= 3, self.dim - x.ndim
        if len(runs) == 1:  # most often: then they can be written row by row
            ((new, _, size),) = runs
            fill_normal(x.narrow(dim, new, size), std, draws, "filler", self.key)
            return x

        def put(part: Tensor, numbers: Tensor, member: int) -> None:
            own = std[member] if stacked else std
            for new, start, size in runs:
                torch.mul(numbers.narrow(dim, start, size), own, out=part.narrow(dim, new, size))

        count = sum(size for *_, size in runs)
        draws.blocks(x, self.dim, count, "filler", self.key, put, stacked=stacked)
        return x

    def _put(self, x: Tensor, value: Tensor | None) -> Tensor:
        for new, _, size in self.channels.filler_runs:
            fillers = x.narrow(self.dim, new, size)
            fillers.zero_() if value is None else fillers.copy_(value)
        return x

    def _mean(self, x: Tensor) -> Tensor:
        return self.channels.first_copies(x, self.dim).mean(dim=self.dim, keepdim=True)


@dataclass(frozen=True)
class FillWhole(Piece):
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

    def factors(self, factors: Factors) -> Factors:
        """None."""
        return no_factors(self.shape)

    def undo(self, found: Reconstruction) -> None:
        """Zeros, or what can have been drawn; nothing of what was before remains."""
        if self.std == 0.0:
            found.require(found.x.clone(), found.magnitudes, "an entry is not zero")
        else:
            found.require_drawn(found.x, self.std, "a drawn entry is out of range")
        found.is_done, found.is_drawn = True, self.std != 0.0

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """All, if they are drawn."""
        return torch.full(self.shape, self.std != 0.0)


@dataclass(frozen=True)
class RedrawWhole(Piece):
    """All entries drawn anew, normal with the standard deviation that those of the matrix have.

    Args:
        key: (operator index, new tensor name).
    """

    key: tuple[int, str]

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Draw."""
        out = torch.empty_like(x)
        fill_normal(out, matrix_std(x), draws, "fresh", self.key)
        return out

    def moment(self, x: Tensor, power: int) -> Tensor:
        """As it was: `Forget` comes after."""
        return x

    def factors(self, factors: Factors) -> Factors:
        """As they were, likewise."""
        return factors

    def undo(self, found: Reconstruction) -> None:
        """What can have been drawn; nothing of what was before remains."""
        like = found.before(drawn=True)
        found.require_drawn(found.x, matrix_std(like), "a drawn entry is out of range", like)
        found.is_done = found.is_drawn = True

    def free(self, mask: Tensor, later: Sequence[Piece], draws: Draws) -> Tensor:
        """All."""
        return torch.ones_like(mask)


@dataclass(frozen=True)
class Forget(Piece):
    """The weight stays, its past does not: a second copy of a block is new to the optimizer."""

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Nothing."""
        return x

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)

    def factors(self, factors: Factors) -> Factors:
        """None: what has no past trains as if it had always been so large."""
        return no_factors([len(factor.weight) for factor in factors])

    def undo(self, found: Reconstruction) -> None:
        """Nothing has happened."""


@dataclass(frozen=True)
class Scale(Piece):
    """All entries times `factor`, where what follows undoes it: gradients divided by it."""

    factor: float

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """Multiply."""
        return x * self.factor

    def moment(self, x: Tensor, power: int) -> Tensor:
        """Divide."""
        return x / self.factor**power

    def factors(self, factors: Factors) -> Factors:
        """The factor, and one over it."""
        return replaced(factors, 0, factors[0].scaled(self.factor))

    def undo(self, found: Reconstruction) -> None:
        """Divide."""
        found.divide(self.factor)


def mean_roundings(size: int, dtype: torch.dtype) -> float:
    """How often a mean over so many entries is rounded; torch sums half precision in fp32, and in pairs."""
    return 2 if dtype.itemsize < 4 else 8 + math.log2(size)


def fill_normal(x: Tensor, std: Tensor, draws: Draws, purpose: str, key: tuple[int, str]) -> None:
    """Write normal numbers, row by row: memory comes at the first write, and slowly to threads that share rows.

    Args:
        x: What is written.
        std: As `matrix_std` gives it.
        draws: Random entries.
        purpose: What for.
        key: (operator index, new tensor name).
    """
    stacked, last = x.ndim >= 3, x.ndim - 1

    def put(part: Tensor, numbers: Tensor, member: int) -> None:
        torch.mul(numbers, std[member] if stacked else std, out=part)

    draws.blocks(x, last, x.shape[last], purpose, key, put, stacked=stacked)


def matrix_std(x: Tensor) -> Tensor:
    """Standard deviation of each matrix of a stack, shaped to multiply it; of all entries below 3 dimensions."""
    stacked = x.ndim >= 3
    dims = tuple(range(int(stacked), x.ndim))
    size = math.prod(x.shape[dim] for dim in dims)
    if x.dtype is torch.float16:  # the square of a norm would overflow
        return matrix_std(x.float()).to(x.dtype)
    # Not `Tensor.std`, which takes ten times as long.
    if size <= SUMMED_AT_ONCE:
        mean_square = torch.linalg.vector_norm(x, dim=dims, keepdim=stacked).square() / size
        mean = x.mean(dim=dims, keepdim=stacked)
    else:
        rows = x if x.ndim > 1 else x.unsqueeze(1)
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).double()
        mean_square = _sum_of_rows(norms.square()) / size
        mean = _sum_of_rows(rows.sum(dim=-1, keepdim=True).double()) / size
        if not stacked:
            mean_square, mean = mean_square.squeeze(), mean.squeeze()
    return (mean_square - mean.square()).clamp(min=0).sqrt().to(x.dtype)


SUMMED_AT_ONCE = 2**15
"""More entries torch shares among its threads, and their sum depends on the number of these; in fp32 that of 44
million is wrong by five percent. Row by row it is neither."""


def _sum_of_rows(x: Tensor) -> Tensor:
    """(..., rows, 1) to (..., 1, 1)."""
    parts = [part.sum(dim=-2, keepdim=True) for part in x.split(SUMMED_AT_ONCE, dim=-2)]
    return sum(parts[1:], start=parts[0])
