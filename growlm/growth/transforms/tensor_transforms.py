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

from growlm.growth.channel_map import ChannelMap, broadcast_along, select_along
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.reconstruction import Reconstruction, is_followed_by_noise
from growlm.growth.transforms.scale_factors import (
    DimFactors,
    ScaleFactors,
    replace_dim_factors,
    unit_factors,
)


class TensorTransform(Protocol):
    """A step of the chain that makes a new tensor from an old one."""

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """What the step does to a weight."""

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """What it does to a running mean of gradient**power."""

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """The factors of each entry after it."""

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check what the step guarantees of what it makes, and turn that into what it was made of.

        Args:
            found: What the step has made; changed.
        """

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
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


def select_in_one_pass(selections: Sequence[Selection], x: Tensor, power: int) -> Tensor:
    """Select along the dimension of every piece, in a moment of `power`, or in the weight itself (0); one pass."""
    factors = {}
    for piece in selections:
        x = x.unsqueeze(piece.dim) if piece.inserts_dim else x
        if exponent := piece.share_exponent(power):
            factors[piece.dim] = piece.channels.shares**exponent
    # The engine puts a Fill behind every selection that has fillers.
    return select_along(x, {piece.dim: piece.channels for piece in selections}, factors)


@dataclass(frozen=True)
class Selection(TensorTransform, ABC):
    """New entry j along `dim` is old entry s(j), times a power of its share.

    Args:
        dim: Dimension.
        channels: The map.
        inserts: The old tensor lacks the dimension (a dense block's weight becoming a stack of experts).
    """

    dim: int
    channels: ChannelMap
    inserts_dim: bool = False

    @abstractmethod
    def share_exponent(self, power: int) -> int:
        """The power of the share: in a moment of `power`, or in the weight itself (0)."""

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Select."""
        return select_in_one_pass([self], x, 0)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Select."""
        return select_in_one_pass([self], x, power)

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Copies must be equal, or sum to their source where they differ by noise."""
        for mean in self._fused_means(reconstruction.earlier_transforms):
            roundings = count_mean_roundings(mean.channels.old_size, reconstruction.growth_dtype)
            reconstruction.add_mean_roundings(mean.dim, roundings)
        exponent = self.share_exponent(0)
        factors = self.channels.shares**exponent if exponent else None
        if self.dim in reconstruction.noisy_dims and self.channels.max_copies > 1:
            reconstruction.sum_copies(self.channels, self.dim, factors)
        else:
            reconstruction.merge_copies(self.channels, self.dim, factors)
        reconstruction.noisy_dims.discard(self.dim)
        if self.inserts_dim:
            reconstruction.apply(lambda x: x.squeeze(self.dim))

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Free entries stay so, unless their copies must be equal."""
        mask = mask.unsqueeze(self.dim) if self.inserts_dim else mask
        mask = mask.index_select(self.dim, self.channels.source.clamp(min=0))
        if is_followed_by_noise(later, self.dim):
            return mask
        return mask & broadcast_along(self.channels.copy_counts() < 2, self.dim, mask)

    def selects_along(self, dim: int) -> bool:
        """Along its own."""
        return dim == self.dim

    def _fused_means(self, earlier: Sequence[TensorTransform]) -> list[Fill]:
        """Means along other dimensions that are taken after this selection, in one pass with it (`chain.py`)."""
        found = []
        for step in reversed(earlier):
            if isinstance(step, Fill):
                found += [step] if step.kind == "mean" and step.dim != self.dim else []
            elif not isinstance(step, Selection) or step.inserts_dim:
                break
        return found

    @abstractmethod
    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """As in `Piece`."""


class Copy(Selection):
    """The weight is copied; each copy's gradient is its share of the source's."""

    def share_exponent(self, power: int) -> int:
        """A moment's own."""
        return power

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Gradients times share. None for an inserted dimension: which expert gets how much, tokens decide."""
        if self.inserts_dim:
            new = DimFactors.ones(self.channels.new_size)
            return (*factors[: self.dim], new, *factors[self.dim :])
        new = factors[self.dim].select(self.channels, gradient_shares=True)
        return replace_dim_factors(factors, self.dim, new)


class Split(Selection):
    """The weight is divided among the copies; they read equal inputs, so gradients are whole."""

    def share_exponent(self, power: int) -> int:
        """1 in the weight, none in moments."""
        return int(power == 0)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Weights times share."""
        new = factors[self.dim].select(self.channels, weight_shares=True)
        return replace_dim_factors(factors, self.dim, new)


@dataclass(frozen=True)
class Fill(TensorTransform):
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
    rng_key: tuple[int, str] = (0, "")

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Fill."""
        if self.kind == "random":
            return self.fill_random(
                x, compute_matrix_std(self.channels.select_first_copies(x, self.dim)), rng
            )
        return self._write_fillers(x, None if self.kind == "zero" else self._mean(x))

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Zero for the first moment, the mean of the other entries for the second.

        PyTorch keeps one step count per tensor, so a second moment of zero in a tensor with a past gets no
        bias correction and its first updates reach several times the learning rate.
        """
        return self._write_fillers(x, None if power == 1 else self._mean(x))

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Fillers have none already."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Fillers must hold what they are filled with, or what can have been drawn."""
        x, dim = reconstruction.x, self.dim
        runs = self.channels.filler_runs
        if self.kind == "random":
            like = self.channels.select_first_copies(x, dim)
            std = compute_matrix_std(like)
            for new, _, size in runs:
                fillers = x.narrow(dim, new, size)
                reconstruction.require_in_normal_range(
                    fillers, std, "a filler is out of range", like
                )
            return
        means = mean_sizes = torch.zeros((), dtype=x.dtype, device=x.device)
        roundings = 0.0
        if self.kind == "mean":
            means, mean_sizes = self._mean(x), self._mean(reconstruction.magnitudes())
            roundings = count_mean_roundings(self.channels.old_size, reconstruction.growth_dtype)
        for new, _, size in runs:
            part = partial(torch.narrow, dim=dim, start=new, length=size)
            reconstruction.require_close(
                part(x) - means,
                reconstruction.magnitudes(part) + mean_sizes,
                "a filler is not zero" if self.kind == "zero" else "a filler is not the mean",
                roundings,
            )

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Those that are drawn."""
        mask = mask.clone()
        for new, _, size in self.channels.filler_runs:
            mask.narrow(self.dim, new, size).fill_(self.kind == "random")
        return mask

    def fill_random(self, x: Tensor, std: Tensor, rng: GrowthRng) -> Tensor:
        """Fill at random with a standard deviation, that of all or of each member of a stack."""
        runs, stacked, dim = self.channels.filler_runs, x.ndim >= 3, self.dim - x.ndim
        if len(runs) == 1:  # most often: then they can be written row by row
            ((new, _, size),) = runs
            fill_normal(x.narrow(dim, new, size), std, rng, "filler", self.rng_key)
            return x

        def put(part: Tensor, numbers: Tensor, member: int) -> None:
            own = std[member] if stacked else std
            for new, start, size in runs:
                torch.mul(numbers.narrow(dim, start, size), own, out=part.narrow(dim, new, size))

        count = sum(size for *_, size in runs)
        rng.draw_in_blocks(x, self.dim, count, "filler", self.rng_key, put, stacked=stacked)
        return x

    def _write_fillers(self, x: Tensor, value: Tensor | None) -> Tensor:
        for new, _, size in self.channels.filler_runs:
            fillers = x.narrow(self.dim, new, size)
            fillers.zero_() if value is None else fillers.copy_(value)
        return x

    def _mean(self, x: Tensor) -> Tensor:
        return self.channels.select_first_copies(x, self.dim).mean(dim=self.dim, keepdim=True)


@dataclass(frozen=True)
class NewTensor(TensorTransform):
    """The whole tensor is new: normal with standard deviation `std`, 0 for zeros; the past is forgotten."""

    shape: tuple[int, ...]
    std: float = 0.0
    rng_key: tuple[int, str] = (0, "")

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Fill."""
        if self.std == 0.0:
            return x.new_zeros(self.shape)
        return rng.normal(self.shape, "fresh", self.rng_key).mul_(self.std).to(x)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Zero."""
        return x.new_zeros(self.shape)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """None."""
        return unit_factors(self.shape)

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Zeros, or what can have been drawn; nothing of what was before remains."""
        if self.std == 0.0:
            reconstruction.require_close(
                reconstruction.x.clone(), reconstruction.magnitudes, "an entry is not zero"
            )
        else:
            reconstruction.require_in_normal_range(
                reconstruction.x, self.std, "a drawn entry is out of range"
            )
        reconstruction.is_done, reconstruction.is_random = True, self.std != 0.0

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """All, if they are drawn."""
        return torch.full(self.shape, self.std != 0.0)


@dataclass(frozen=True)
class Reinitialize(TensorTransform):
    """All entries drawn anew, normal with the standard deviation that those of the matrix have.

    Args:
        key: (operator index, new tensor name).
    """

    rng_key: tuple[int, str]

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Draw."""
        out = torch.empty_like(x)
        fill_normal(out, compute_matrix_std(x), rng, "fresh", self.rng_key)
        return out

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """As it was: `Forget` comes after."""
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """As they were, likewise."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """What can have been drawn; nothing of what was before remains."""
        like = reconstruction.rebuild_input(with_random=True)
        reconstruction.require_in_normal_range(
            reconstruction.x, compute_matrix_std(like), "a drawn entry is out of range", like
        )
        reconstruction.is_done = reconstruction.is_random = True

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """All."""
        return torch.ones_like(mask)


@dataclass(frozen=True)
class ResetMoments(TensorTransform):
    """The weight stays, its past does not: a second copy of a block is new to the optimizer."""

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Nothing."""
        return x

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """None: what has no past trains as if it had always been so large."""
        return unit_factors([len(factor.weight) for factor in factors])

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Nothing has happened."""


@dataclass(frozen=True)
class Scale(TensorTransform):
    """All entries times `factor`, where what follows undoes it: gradients divided by it."""

    factor: float

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Multiply."""
        return x * self.factor

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Divide."""
        return x / self.factor**power

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """The factor, and one over it."""
        return replace_dim_factors(factors, 0, factors[0].scale(self.factor))

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Divide."""
        reconstruction.divide(self.factor)


def count_mean_roundings(size: int, dtype: torch.dtype) -> float:
    """How often a mean over so many entries is rounded; torch sums half precision in fp32, and in pairs."""
    return 2 if dtype.itemsize < 4 else 8 + math.log2(size)


def fill_normal(
    x: Tensor, std: Tensor, rng: GrowthRng, purpose: str, rng_key: tuple[int, str]
) -> None:
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

    rng.draw_in_blocks(x, last, x.shape[last], purpose, rng_key, put, stacked=stacked)


def compute_matrix_std(x: Tensor) -> Tensor:
    """Standard deviation of each matrix of a stack, shaped to multiply it; of all entries below 3 dimensions."""
    stacked = x.ndim >= 3
    dims = tuple(range(int(stacked), x.ndim))
    size = math.prod(x.shape[dim] for dim in dims)
    if x.dtype is torch.float16:  # the square of a norm would overflow
        return compute_matrix_std(x.float()).to(x.dtype)
    # Not `Tensor.std`, which takes ten times as long.
    if size <= MAX_SUMMED_ENTRIES:
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


MAX_SUMMED_ENTRIES = 2**15
"""More entries torch shares among its threads, and their sum depends on the number of these; in fp32 that of 44
million is wrong by five percent. Row by row it is neither."""


def _sum_of_rows(x: Tensor) -> Tensor:
    """(..., rows, 1) to (..., 1, 1)."""
    parts = [part.sum(dim=-2, keepdim=True) for part in x.split(MAX_SUMMED_ENTRIES, dim=-2)]
    return sum(parts[1:], start=parts[0])
