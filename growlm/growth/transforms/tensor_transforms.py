"""The basic tensor transforms of growth: copy, split, fill, scale, reinitialize.

Noise is in `noise.py`; transforms that only experts need are in `upcycle_transforms.py`.

Each transform defines what it does to a weight and what that does to the weight's gradient, so the
optimizer's moments follow from the same transforms: `transform_moment(x, power)` maps a running mean of
gradient**power. The rule behind every gradient factor: if an entry was multiplied by a and its output is read
with a share s, its gradient is multiplied by s / a (LEMON, Wang et al. 2023, arXiv 2310.07999; Staged
Training, Shen et al. 2022, 2203.06211).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along, select_along
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.half_precision import is_half, multiply_by_shares
from growlm.growth.transforms.matrix_std import compute_matrix_std
from growlm.growth.transforms.reconstruction import Reconstruction, is_followed_by_noise
from growlm.growth.transforms.scale_factors import (
    DimFactors,
    ScaleFactors,
    replace_dim_factors,
    unit_factors,
)


class FusionGroup(Protocol):
    """Transforms that are applied together in one pass; see `fused.py`."""

    def add_selection(self, selection: Selection) -> bool:
        """Add a selection and return True, or return False if it must wait for the next pass."""

    def add_fill(self, fill: Fill) -> bool:
        """Add a fill and return True, or return False if it must be applied on its own."""


class TensorTransform(Protocol):
    """A step in making a new tensor from an old one."""

    replaces_source: ClassVar[bool] = False
    """Whether the result holds nothing of the tensor that it is applied to."""
    resets_moments: ClassVar[bool] = False
    """Whether the optimizer starts at step 0, without the moments of the source."""
    keeps_weight: ClassVar[bool] = False
    """Whether the weight stays as it is."""
    makes_copies_differ: ClassVar[bool] = False
    """Whether copies of one source get different values."""
    is_exact: ClassVar[bool] = False
    """Whether entries are copied without rounding."""

    @property
    def plain_selection(self) -> Selection | None:
        """This transform as a selection along an existing dimension; None if it is something else."""
        return None

    @property
    def fill(self) -> Fill | None:
        """This transform as a fill; None if it is something else."""
        return None

    def fuse_into(self, group: FusionGroup) -> bool:
        """Add this transform to a group and return True; return False if it cannot be fused."""
        return False

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Return the transformed weight."""

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return the transformed running mean of gradient**power."""

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors of each entry after the transform."""

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check what the transform guarantees of its output, and turn the output back into its input.

        Args:
            reconstruction: Output of the transform; changed in place.
        """

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return which entries can hold other numbers without `verify_and_revert` finding a fault.

        Args:
            mask: The same mask for the input of the transform, bool.
            later: Transforms after this one.
            rng: Random state of the growth.
        """
        return mask

    def describe_half_precision_rounding(self) -> str | None:
        """Return what it rounds in half precision; None if its result is exact there."""
        return None

    def adds_noise_along(self, dim: int) -> bool:
        """Return whether it makes the copies along a dimension differ."""
        return False

    def selects_along(self, dim: int) -> bool:
        """Return whether it makes copies along a dimension."""
        return False


def select_in_one_pass(selections: Sequence[Selection], x: Tensor, power: int) -> Tensor:
    """Apply selections along different dimensions in one pass, to a moment of `power` or to the weight (0)."""
    factors, on_grid = {}, []
    for selection in selections:
        x = x.unsqueeze(selection.dim) if selection.inserts_dim else x
        exponent = selection.share_exponent(power)
        if exponent and power == 0 and is_half(x.dtype):
            on_grid += [selection] if selection.channels.max_copies > 1 else []
        elif exponent:
            factors[selection.dim] = selection.channels.shares**exponent
    # The growth map puts a Fill after every selection that has fillers.
    new = select_along(x, {selection.dim: selection.channels for selection in selections}, factors)
    for selection in on_grid:
        multiply_by_shares(new, selection.channels, selection.dim)
    return new


@dataclass(frozen=True)
class Selection(TensorTransform, ABC):
    """A transform whose new entry j along `dim` is the old entry source[j], times a power of its share.

    Args:
        dim: Dimension.
        channels: Map of the dimension.
        inserts_dim: Whether the old tensor lacks the dimension (a dense block's weight becoming a stack of
            experts).
    """

    dim: int
    channels: ChannelMap
    inserts_dim: bool = False

    @abstractmethod
    def share_exponent(self, power: int) -> int:
        """Return the exponent of the share, for a moment of `power` or the weight (0)."""

    @property
    def plain_selection(self) -> Selection | None:
        """This selection, unless it inserts its dimension."""
        return None if self.inserts_dim else self

    def fuse_into(self, group: FusionGroup) -> bool:
        """Add the selection to a group, unless it inserts its dimension."""
        return not self.inserts_dim and group.add_selection(self)

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Select entries of the weight."""
        return select_in_one_pass([self], x, 0)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Select entries of the moment."""
        return select_in_one_pass([self], x, power)

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that copies are equal, or sum to their source where they differ by noise, and merge them."""
        for mean in self._fused_means(reconstruction.earlier_transforms):
            roundings = count_mean_roundings(mean.channels.old_size, reconstruction.growth_dtype)
            reconstruction.add_mean_roundings(mean.dim, roundings)
        exponent = self.share_exponent(0)
        factors = self.channels.shares**exponent if exponent else None
        is_split_on_grid = bool(exponent) and is_half(reconstruction.growth_dtype)
        if self.channels.max_copies > 1 and self.dim in reconstruction.noisy_dims:
            reconstruction.sum_copies(self.channels, self.dim, factors)
        elif self.channels.max_copies > 1 and is_split_on_grid:
            reconstruction.sum_parts(self.channels, self.dim)
        else:
            reconstruction.merge_copies(self.channels, self.dim, factors)
        reconstruction.noisy_dims.discard(self.dim)
        if self.inserts_dim:
            reconstruction.apply(lambda x: x.squeeze(self.dim))

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return the mask of free entries; entries whose copies must be equal are not free."""
        mask = mask.unsqueeze(self.dim) if self.inserts_dim else mask
        mask = mask.index_select(self.dim, self.channels.source.clamp(min=0))
        if is_followed_by_noise(later, self.dim):
            return mask
        return mask & broadcast_along(self.channels.copy_counts() < 2, self.dim, mask)

    def selects_along(self, dim: int) -> bool:
        """Return whether this is the selection's dimension."""
        return dim == self.dim

    def _fused_means(self, earlier: Sequence[TensorTransform]) -> list[Fill]:
        """Return mean fills along other dimensions that are fused with this selection (`fused.py`)."""
        found = []
        for step in reversed(earlier):
            if (fill := step.fill) is not None:
                found += [fill] if fill.kind == "mean" and fill.dim != self.dim else []
            elif step.plain_selection is None:
                break
        return found

    @abstractmethod
    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors of each entry after the transform."""


class Copy(Selection):
    """A selection that copies the weight; each copy's gradient is its share of the source's."""

    is_exact: ClassVar[bool] = True

    def share_exponent(self, power: int) -> int:
        """Return the moment's own power."""
        return power

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Multiply gradient factors by the shares.

        An inserted dimension gets factors of one: how much each expert gets depends on the tokens.
        """
        if self.inserts_dim:
            new = DimFactors.ones(self.channels.new_size)
            return (*factors[: self.dim], new, *factors[self.dim :])
        new = factors[self.dim].select(self.channels, gradient_shares=True)
        return replace_dim_factors(factors, self.dim, new)


class Split(Selection):
    """A selection that divides the weight among copies with equal inputs, so gradients are not divided."""

    def share_exponent(self, power: int) -> int:
        """Return 1 for the weight and 0 for moments."""
        return int(power == 0)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Multiply weight factors by the shares."""
        new = factors[self.dim].select(self.channels, weight_shares=True)
        return replace_dim_factors(factors, self.dim, new)


@dataclass(frozen=True)
class Fill(TensorTransform):
    """The transform that fills new entries along `dim` that copy no old ones: zeros, the mean, or random values.

    Args:
        dim: Dimension.
        channels: Map whose fillers are filled.
        kind: `zero`; `mean` over the first copies; `random`, normal with the standard deviation of the
            matrix's other entries.
        rng_key: (operator index, new tensor name), for `random`.
        is_subtracted: Whether the norms subtract the fillers again, so that they must be exact.
    """

    dim: int
    channels: ChannelMap
    kind: str
    rng_key: tuple[int, str] = (0, "")
    is_subtracted: bool = False

    is_exact: ClassVar[bool] = True

    @property
    def fill(self) -> Fill | None:
        """This transform."""
        return self

    def fuse_into(self, group: FusionGroup) -> bool:
        """Add the fill to a group."""
        return group.add_fill(self)

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Write the fillers of the weight."""
        if self.kind == "random":
            return self.fill_random(
                x, compute_matrix_std(self.channels.select_first_copies(x, self.dim)), rng
            )
        return self._write_fillers(x, None if self.kind == "zero" else self._mean(x))

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Write zero for the first moment, the mean of the other entries for the second.

        PyTorch keeps one step count per tensor, so a second moment of zero in a tensor that was trained
        before gets no bias correction, and its first updates would be several times the learning rate.
        """
        return self._write_fillers(x, None if power == 1 else self._mean(x))

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors unchanged: those of fillers are one already."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that fillers hold what they were filled with, or are in range if they are random."""
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
        """Return the mask with random fillers free and all other fillers not."""
        mask = mask.clone()
        for new, _, size in self.channels.filler_runs:
            mask.narrow(self.dim, new, size).fill_(self.kind == "random")
        return mask

    def describe_half_precision_rounding(self) -> str | None:
        """Return that means are rounded, where it matters."""
        return "the mean of the other channels" if self.is_subtracted else None

    def fill_random(self, x: Tensor, std: Tensor, rng: GrowthRng) -> Tensor:
        """Write random fillers; `std` is one standard deviation or one per member of a stack."""
        runs, stacked, dim = self.channels.filler_runs, x.ndim >= 3, self.dim - x.ndim
        if len(runs) == 1:  # the usual case, which can be written row by row
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
    """The transform that makes a new tensor without moments: normal with standard deviation `std`, or `value`."""

    shape: tuple[int, ...]
    std: float = 0.0
    rng_key: tuple[int, str] = (0, "")
    value: float = 0.0
    """Value of all entries if `std` is 0."""

    replaces_source: ClassVar[bool] = True
    resets_moments: ClassVar[bool] = True

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Return the new weight."""
        if self.std == 0.0:
            return x.new_full(self.shape, self.value)
        return rng.normal(self.shape, "fresh", self.rng_key).mul_(self.std).to(x)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return zeros."""
        return x.new_zeros(self.shape)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return factors of one."""
        return unit_factors(self.shape)

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that entries are zero or in range; the input of the transform cannot be recovered."""
        if self.std == 0.0:
            reconstruction.require_close(
                reconstruction.x - self.value,
                reconstruction.magnitudes,
                f"an entry is not {self.value:g}" if self.value else "an entry is not zero",
            )
        else:
            reconstruction.require_in_normal_range(
                reconstruction.x, self.std, "a random entry is out of range"
            )
        reconstruction.is_done, reconstruction.is_random = True, self.std != 0.0

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return whether entries are random, for all of them."""
        return torch.full(self.shape, self.std != 0.0)


@dataclass(frozen=True)
class Reinitialize(TensorTransform):
    """The transform that replaces all entries by normal numbers with the matrix's own standard deviation.

    Args:
        rng_key: (operator index, new tensor name).
    """

    rng_key: tuple[int, str]

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Return a random weight."""
        out = torch.empty_like(x)
        fill_normal(out, compute_matrix_std(x), rng, "fresh", self.rng_key)
        return out

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return the moment unchanged: `ResetMoments` comes after."""
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors unchanged: `ResetMoments` comes after."""
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check that entries are in range; the input of the transform cannot be recovered."""
        like = reconstruction.rebuild_input(with_random=True)
        reconstruction.require_in_normal_range(
            reconstruction.x, compute_matrix_std(like), "a random entry is out of range", like
        )
        reconstruction.is_done = reconstruction.is_random = True

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return a mask of all entries."""
        return torch.ones_like(mask)


@dataclass(frozen=True)
class ResetMoments(TensorTransform):
    """The transform that keeps the weight and drops its moments, for blocks that are new to the optimizer."""

    resets_moments: ClassVar[bool] = True
    keeps_weight: ClassVar[bool] = True

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Return the weight unchanged."""
        return x

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x)

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return factors of one: without moments, the entries train as if they had always had this size."""
        return unit_factors([len(factor.weight) for factor in factors])

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Do nothing, because the weight was not changed."""


@dataclass(frozen=True)
class Scale(TensorTransform):
    """The transform that multiplies all entries, and divides gradients, by a factor that a later step undoes."""

    factor: float

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Multiply the weight by the factor."""
        return x * self.factor

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Divide the moment by factor**power."""
        return x / self.factor**power

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Multiply weight factors and divide gradient factors by the factor."""
        return replace_dim_factors(factors, 0, factors[0].scale(self.factor))

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Divide by the factor."""
        reconstruction.divide(self.factor)

    def describe_half_precision_rounding(self) -> str | None:
        """Return that products are rounded, unless the factor is a power of two."""
        is_power = math.frexp(self.factor)[0] == 0.5
        return None if is_power else f"times {self.factor:.6g}"


@dataclass(frozen=True)
class OffsetTransforms(TensorTransform):
    """Transforms of a parameter that the model adds a constant to; they apply to the sum.

    Args:
        offset: Constant.
        steps: Transforms, applied in order.
    """

    offset: float
    steps: tuple[TensorTransform, ...]

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Transform the sum, in at least fp32: beside the constant, small weights would be rounded away."""
        total = x.to(torch.promote_types(x.dtype, torch.float32)) + self.offset
        for step in self.steps:
            total = step.transform_weight(total, rng)
        return (total - self.offset).to(x.dtype)

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Transform the moment; a constant does not change it."""
        for step in self.steps:
            x = step.transform_moment(x, power)
        return x

    def transform_factors(self, factors: ScaleFactors) -> ScaleFactors:
        """Return the factors after all steps."""
        for step in self.steps:
            factors = step.transform_factors(factors)
        return factors

    def verify_and_revert(self, reconstruction: Reconstruction) -> None:
        """Check and revert each step of the sum, the last one first."""
        reconstruction.add_constant(self.offset)
        earlier = reconstruction.earlier_transforms
        for index in reversed(range(len(self.steps))):
            reconstruction.earlier_transforms = (*earlier, *self.steps[:index])
            self.steps[index].verify_and_revert(reconstruction)
        reconstruction.add_constant(-self.offset)

    def unconstrained_entries(
        self, mask: Tensor, later: Sequence[TensorTransform], rng: GrowthRng
    ) -> Tensor:
        """Return the mask after all steps."""
        for index, step in enumerate(self.steps):
            mask = step.unconstrained_entries(mask, (*self.steps[index + 1 :], *later), rng)
        return mask

    def describe_half_precision_rounding(self) -> str | None:
        """Return that the difference from the constant is rounded."""
        return f"stored less {self.offset:g}"

    def selects_along(self, dim: int) -> bool:
        """Return whether any step makes copies along the dimension."""
        return any(step.selects_along(dim) for step in self.steps)


def count_mean_roundings(size: int, dtype: torch.dtype) -> float:
    """Return the number of roundings in a mean; torch sums half precision in fp32, and in pairs."""
    return 2 if dtype.itemsize < 4 else 8 + math.log2(size)


def fill_normal(
    x: Tensor, std: Tensor, rng: GrowthRng, purpose: str, rng_key: tuple[int, str]
) -> None:
    """Fill a tensor with normal numbers row by row, so that no two threads write to the same row.

    Memory is allocated at the first write, which is slow for threads that share rows.

    Args:
        x: Tensor to write.
        std: Standard deviation, as `compute_matrix_std` returns it.
        rng: Source of random entries.
        purpose: Purpose of the numbers; part of the seed.
        rng_key: (operator index, new tensor name).
    """
    stacked, last = x.ndim >= 3, x.ndim - 1

    def put(part: Tensor, numbers: Tensor, member: int) -> None:
        torch.mul(numbers, std[member] if stacked else std, out=part)

    rng.draw_in_blocks(x, last, x.shape[last], purpose, rng_key, put, stacked=stacked)
