"""Noise that makes copies differ: zero-sum noise, which keeps the function, and tie-breaking noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along, find_consecutive_runs
from growlm.growth.growth_rng import ODD_INTEGER_STD, GrowthRng
from growlm.growth.transforms.half_precision import (
    is_half,
    move_between_many,
    move_between_two,
    sum_tensors,
)
from growlm.growth.transforms.matrix_std import compute_matrix_std
from growlm.growth.transforms.reconstruction import NOISE_ROUNDINGS, Reconstruction
from growlm.growth.transforms.scale_factors import ScaleFactors
from growlm.growth.transforms.tensor_transforms import TensorTransform


@dataclass(frozen=True)
class ZeroSumNoise(TensorTransform):
    """Noise in the columns of copies that sums to zero over the copies of each source, row by row.

    The copies carry equal activations, so the noise cancels in the function while it makes the copies differ.
    Its standard deviation is capped at that of the matrix's own entries: larger noise amplifies the rounding
    differences between copies, layer after layer. It is uniform with 128 levels if no channel has more than
    two copies, else normal.

    In half precision the noisy copies are rounded so that they still sum to their source, to the bit
    (`half_precision.py`). For that, the noise of each entry is limited by the entry too: no copy changes its
    sign, and the standard deviation of its noise is at most 1 / sqrt(3) of the entry.

    Args:
        dim: Dimension that reads the grown axis.
        channels: Map of the axis.
        std: Standard deviation before the cap; without effect with `snr_db`.
        snr_db: Signal-to-noise ratio: the standard deviation is the matrix's own times 10**(-snr_db / 20)
            (HyperCloning, Samragh et al. 2024, arXiv 2409.12903, section 3.2).
        rng_key: (operator index, new tensor name).
        repeated_rows: (dimension, size) if entries beyond that size repeat those before it: the standard
            deviation of the whole is then computed from that part.
    """

    dim: int
    channels: ChannelMap
    std: float
    snr_db: float | None
    rng_key: tuple[int, str]
    repeated_rows: tuple[int, int] | None = None

    makes_copies_differ: ClassVar[bool] = True

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Add the noise."""
        if self.channels.max_copies < 2:
            return x
        own = compute_matrix_std(
            x
            if self.repeated_rows is None
            else x.narrow(self.repeated_rows[0], 0, self.repeated_rows[1])
        )
        if is_half(x.dtype):  # the norm of weights near the largest number overflows
            own = own.nan_to_num(nan=math.inf, posinf=math.inf)
        below = None if self.snr_db is None else 10 ** (-self.snr_db / 20)
        sigma = own.clamp(max=self.std) if below is None else own * below
        level: dict[str, float | bool] = {
            "sigma": float(sigma.max()),
            "capped": self.snr_db is None and bool((own < self.std).any()),
        }
        if is_half(x.dtype):
            level["limited"] = self._add_on_grid(x, sigma.float(), rng)
        else:
            self._add(x, sigma.to(x), rng)
        rng.noise_log.levels[self.rng_key] = level
        return x

    def _add_on_grid(self, x: Tensor, sigma: Tensor, rng: GrowthRng) -> float:
        """Add noise in half precision, block by block, and return the share of weights that limited it.

        Args:
            x: Weight.
            sigma: One number or one per member of a stack, fp32.
            rng: Source of random entries.
        """
        stacked = x.ndim >= 3 and self.dim > 0
        dim = self.dim - x.ndim
        is_pairs = self.channels.max_copies <= 2
        groups = [find_consecutive_runs(*group) for group in self.channels.copy_groups]
        counts: list[Tensor] = []

        def add(part: Tensor, numbers: Tensor, member: int) -> None:
            level = sigma[member] if stacked else sigma
            values = numbers.float()
            done = 0
            for runs in groups:
                for *starts, size in runs:
                    copies = [part.narrow(dim, start, size) for start in starts]
                    own = level
                    if x.ndim >= 3 and not stacked:
                        own = level[starts[0] : starts[0] + size]
                    if is_pairs:
                        moved = values.narrow(dim, done, size)
                        counts.append(_move_uniform(copies, moved.mul_(1 / ODD_INTEGER_STD), own))
                        done += size
                    else:
                        moves = [values.narrow(dim, start, size) for start in starts]
                        counts.append(_move_normal(copies, moves, own))

        count = sum(group.shape[1] for group in self.channels.copy_groups)
        rng.draw_in_blocks(
            x,
            self.dim,
            count if is_pairs else x.shape[dim],
            "noise",
            self.rng_key,
            add,
            stacked=stacked,
            odd_integers=is_pairs,
        )
        weights = x.numel() // x.shape[dim] * count
        return int(torch.stack(counts).sum()) / weights

    def _add(self, x: Tensor, sigma: Tensor, rng: GrowthRng) -> None:
        """Add noise block by block; `sigma` is one number or one per member of a stack."""
        stacked = x.ndim >= 3 and self.dim > 0
        dim = self.dim - x.ndim  # counted from the end, so that it fits a member of a stack too
        pairs = self.channels.duplicate_pairs if self.channels.max_copies <= 2 else None
        count = x.shape[dim] if pairs is None else len(pairs)
        runs = [] if pairs is None else find_consecutive_runs(torch.arange(count), *pairs.T)
        if pairs is not None and x.ndim >= 3 and not stacked:
            sigma = sigma[pairs[:, 0]]  # copies along the stack: one sigma per pair of members

        def add_balanced(part: Tensor, numbers: Tensor, member: int) -> None:
            self._add_zero_mean(part, numbers.mul_(sigma[member] if stacked else sigma), dim)

        def add_opposite(part: Tensor, numbers: Tensor, member: int) -> None:
            factor = (sigma[member] if stacked else sigma) * (0.5**0.5 / ODD_INTEGER_STD)
            if factor.numel() == 1:
                self._add_antithetic(part, numbers, float(factor), dim, runs)
            else:
                self._add_antithetic(part, numbers.mul_(factor), 1.0, dim, runs)

        add, odd = (add_balanced, False) if pairs is None else (add_opposite, True)
        rng.draw_in_blocks(
            x, self.dim, count, "noise", self.rng_key, add, stacked=stacked, odd_integers=odd
        )

    def _add_antithetic(
        self, x: Tensor, noise: Tensor, factor: float, dim: int, runs: list[tuple[int, ...]]
    ) -> None:
        """Add noise to one copy and its negative to the other; they sum to zero and need half the draws."""
        for start, first, second, size in runs:
            values = noise.narrow(dim, start, size)
            x.narrow(dim, first, size).add_(values, alpha=factor)
            x.narrow(dim, second, size).sub_(values, alpha=factor)

    def _add_zero_mean(self, x: Tensor, noise: Tensor, dim: int) -> None:
        copies = self.channels.copy_counts()
        mean = self.channels.sum_copies(noise, dim)
        noise.sub_(
            self.channels.select(mean, dim).div_(broadcast_along(copies.clamp(min=1), dim, x))
        )
        # `select` leaves fillers unwritten, so their noise is uninitialized memory.
        noise.masked_fill_(broadcast_along(copies < 2, dim, x).bool(), 0.0)
        x.add_(noise)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return the moment unchanged, as the gradient is."""
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors unchanged."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Mark the copies as noisy, so that the step that made them compares only their sum."""
        reconstruction.noisy_dims.add(self.dim)
        if self.channels.max_copies > 2:
            # The noise can only have raised it.
            largest = float(compute_matrix_std(reconstruction.x).max())
            cap = self.std if self.snr_db is None else largest * 10 ** (-self.snr_db / 20)
            reconstruction.absolute_tolerance += (
                NOISE_ROUNDINGS * reconstruction.unit_roundoff * min(largest, cap)
            )

    def adds_noise_along(self, dim: int) -> bool:
        """Return whether this is the noise's dimension."""
        return dim == self.dim


def _limit_std(copies: list[Tensor], sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of noise on each weight's copies, and the number of weights that limit it."""
    smallest = copies[0].abs()
    for copy in copies[1:]:
        smallest = torch.minimum(smallest, copy.abs())
    # Over n copies the noise has a variance of 1 - 1/n of the variance asked for, as its mean is subtracted.
    own = smallest.float().mul_((3 * (1 - 1 / len(copies))) ** -0.5)
    return torch.minimum(own, sigma), (own < sigma).sum()


def _move_uniform(copies: list[Tensor], numbers: Tensor, sigma: Tensor) -> Tensor:
    """Add noise to one copy and its negative to the other, and return the number of weights that limited it.

    Args:
        copies: The two copies, in half precision.
        numbers: Uniform numbers of variance 1 and range sqrt(3).
        sigma: Standard deviation.
    """
    level, limited = _limit_std(copies, sigma)
    first, second = copies
    move_between_two(first, second, level.mul_(numbers).mul_(0.5**0.5))
    return limited


def _move_normal(copies: list[Tensor], numbers: list[Tensor], sigma: Tensor) -> Tensor:
    """Add noise that sums to zero to any number of copies, and return the number of weights that limited it.

    Args:
        copies: The copies, in half precision.
        numbers: Normal numbers of variance 1 for each.
        sigma: Standard deviation.
    """
    level, limited = _limit_std(copies, sigma)
    mean = sum_tensors(numbers).div_(len(numbers))
    move_between_many(copies, [(number - mean).mul_(level) for number in numbers])
    return limited


@dataclass(frozen=True)
class TieBreakingNoise(TensorTransform):
    """Noise on all copies of a router row but the first, so that their scores no longer tie. Not lossless.

    Args:
        channels: Map of the experts, along dimension 0.
        std: Standard deviation.
        rng_key: (operator index, new tensor name).
    """

    channels: ChannelMap
    std: float
    rng_key: tuple[int, str]

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Add the noise."""
        noise = rng.normal(tuple(x.shape), "ties", self.rng_key).to(x).mul_(self.std)
        noise.mul_(broadcast_along((~self.channels.is_first_copy).to(x.dtype), 0, x))
        return x.add_(noise)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return the moment unchanged."""
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors unchanged."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that further copies are as near to the first as the noise allows, and mark them as unknown."""
        further = ~self.channels.is_first_copy.to(reconstruction.x.device)
        first = self.channels.select_first_copies_in_source_order(reconstruction.x, 0)
        distance = reconstruction.x - self.channels.select(first, 0)
        reconstruction.require_in_normal_range(
            distance[further], self.std, "a router row is too far from its source"
        )
        reconstruction.x = reconstruction.x.clone()
        reconstruction.x[further] = torch.nan
        reconstruction.has_unknown_entries = True

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return the mask with all copies but the first added."""
        return mask | broadcast_along(~self.channels.is_first_copy, 0, mask)
