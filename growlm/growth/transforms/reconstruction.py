"""Undo the transforms of a grown tensor one by one, and check what each of them guarantees.

No random number is drawn again: copies must equal each other or, where noise was added, sum to their source;
fillers must hold what they were filled with. Entries that depend on random numbers alone are only checked to
be in the range of the distribution.

Tolerances are bounds on rounding: a step that rounds an entry moves it by at most half of the stored
precision's `eps` times its magnitude, and a sum of entries is off by the sum of these. Where no step has
rounded, the comparison is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along
from growlm.growth.transforms.half_precision import has_exact_shares
from growlm.runtime.number_format import format_magnitude

MAX_NORMAL_DEVIATIONS = 10.0
"""The number of standard deviations within which random numbers lie: the table of quantiles ends at 4.3, and
of 10**22 normal numbers one is beyond 10."""
SHARE_ROUNDINGS = 3
"""The number of roundings by a share: it is rounded to the tensor's precision, multiplied by, and divided by
again here."""
NOISE_ROUNDINGS = 8
"""The number of roundings per copy when zero-mean numbers are made for more than two copies: a sum, a
quotient, and differences."""


@dataclass(frozen=True)
class Fault:
    """A violation of something that a transform guarantees.

    Args:
        message: What is wrong, to follow the tensor's name.
        difference: Difference of the worst entry.
        tolerance: How far rounding may move that entry.
    """

    message: str
    difference: float | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        if self.difference is None:
            return self.message
        return (
            f"{self.message} (off by {format_magnitude(self.difference)}, rounding allows "
            f"{format_magnitude(self.tolerance)})"
        )


@dataclass
class Reconstruction:
    """A grown tensor whose transforms are undone, the last one first, with the faults found on the way.

    Args:
        x: Tensor, in at least fp32; never written to.
        growth_dtype: Precision that it was grown in.
        rebuild: Function that makes the input of a transform from the transforms before it; with random
            numbers or without.
        shared_state: Information shared between the tensors of one model: which hidden units were
            reinitialized.
    """

    x: Tensor
    growth_dtype: torch.dtype
    rebuild: Callable[[Sequence[Any], bool], Tensor]
    shared_state: dict[Any, Tensor]
    faults: list[Fault] = field(default_factory=list)
    earlier_transforms: Sequence[Any] = ()
    """The transforms before the one being undone."""
    summed_magnitudes: Tensor | None = None
    """The magnitudes that were added up in each entry; those of `x` if None."""
    num_roundings: float = 0
    """How often an entry was rounded; each time by at most half an `eps` of its size."""
    absolute_tolerance: float = 0.0
    """The rounding error beyond that: of numbers below the precision's normal range, and of noise."""
    noisy_dims: set[int] = field(default_factory=set)
    """Dimensions whose copies differ by noise."""
    is_summed: bool = False
    """Whether shares or copies have been added up."""
    has_unknown_entries: bool = False
    """Whether entries that can be anything were replaced by NaN, which comparisons ignore. No other entries
    are NaN: the tensor's own entries were found to be finite."""
    is_done: bool = False
    """Whether the tensor holds nothing from before the transform that was undone last."""
    is_random: bool = False
    """Whether everything that transform made is random."""

    @property
    def unit_roundoff(self) -> float:
        """The largest relative change of an entry by one rounding."""
        return torch.finfo(self.growth_dtype).eps / 2

    def add_roundings(self, count: float) -> None:
        """Record that every entry was rounded `count` times."""
        self.num_roundings += count
        self.absolute_tolerance += count * self.smallest_subnormal

    @property
    def smallest_subnormal(self) -> float:
        """The distance of numbers below the precision's normal range, to which they are rounded."""
        info = torch.finfo(self.growth_dtype)
        return info.smallest_normal * info.eps

    def rebuild_input(self, *, with_random: bool = False) -> Tensor:
        """Rebuild the input of the transform being undone, as far as it does not depend on random numbers.

        Args:
            with_random: Whether to draw random numbers where there are any; they differ from those of the
                growth.
        """
        return self.rebuild(self.earlier_transforms, with_random)

    def add_fault(self, message: str) -> None:
        """Record a fault that is not a difference of numbers."""
        self.faults.append(Fault(message))

    def magnitudes(self, part: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Return the magnitudes that rounding is relative to, for a part of the tensor or all of it."""
        return (
            part(self.x).abs() if self.summed_magnitudes is None else part(self.summed_magnitudes)
        )

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function to the tensor and to its magnitudes."""
        self.x = function(self.x)
        self.summed_magnitudes = (
            None if self.summed_magnitudes is None else function(self.summed_magnitudes)
        )

    def add_mean_roundings(self, dim: int, roundings: float) -> None:
        """Record that some entries are means over a dimension, which are rounded differently for every copy."""
        sizes = self.magnitudes()
        self.summed_magnitudes = sizes + sizes.mean(dim=dim, keepdim=True)
        self.add_roundings(roundings)

    def divide(self, factors: float | Tensor) -> None:
        """Undo a multiplication by a number, or by one number for each entry of a dimension."""
        self.apply(lambda x: x / factors)
        values = factors.unique().tolist() if isinstance(factors, Tensor) else [factors]
        self.absolute_tolerance = (self.absolute_tolerance + self.smallest_subnormal) / min(
            abs(value) for value in values
        )
        if any(math.frexp(value)[0] != 0.5 for value in values):
            self.add_roundings(SHARE_ROUNDINGS)

    def add_constant(self, constant: float) -> None:
        """Undo a subtraction of a constant, which counts among the magnitudes from then on."""
        sizes = self.magnitudes()
        self.x = self.x + constant
        self.summed_magnitudes = sizes + abs(constant)
        self.add_roundings(2)

    def require_close(
        self,
        difference: Tensor,
        sizes: Tensor | Callable[[], Tensor],
        message: str,
        roundings: float = 0,
    ) -> None:
        """Check that a difference is no larger than rounding.

        Args:
            difference: Difference of entries of `x`; overwritten.
            sizes: Magnitudes that were added up in it.
            message: What is wrong if it is larger.
            roundings: Number of roundings in addition to those of `x`.
        """
        difference.abs_()
        if self.has_unknown_entries:
            difference.nan_to_num_(nan=0.0, posinf=math.inf)
        allowed: Tensor | float = self.absolute_tolerance + roundings * self.smallest_subnormal
        if self.num_roundings + roundings:
            sizes = sizes() if callable(sizes) else sizes
            allowed = sizes * (self.unit_roundoff * (self.num_roundings + roundings)) + allowed
        excess = difference.sub_(allowed)
        if self.has_unknown_entries:
            excess.nan_to_num_(nan=0.0, posinf=math.inf)
        # "not <=" instead of ">", so that a NaN, from infinite entries, is a fault.
        if excess.numel() and not excess.max() <= 0:
            worst = int(excess.nan_to_num_(nan=math.inf).argmax())
            bound = float(allowed.flatten()[worst] if isinstance(allowed, Tensor) else allowed)
            self.faults.append(Fault(message, float(excess.flatten()[worst]) + bound, bound))

    def require_equal(self, other: Tensor, message: str) -> None:
        """Check that the tensor equals another one, up to rounding.

        Args:
            other: Other tensor, in the same precision.
            message: What is wrong if it does not.
        """
        if not self.has_unknown_entries and torch.equal(self.x, other):
            return
        self.require_close(self.x - other, self.magnitudes, message)

    def require_in_normal_range(
        self, x: Tensor, std: Tensor | float, message: str, like: Tensor | None = None
    ) -> None:
        """Check that entries can come from a normal distribution with mean zero and this standard deviation.

        Args:
            x: Entries to check.
            std: Standard deviation, or one for each member of a stack.
            message: What is wrong if they cannot.
            like: Entries from which the standard deviation was computed; its rounding error is largest where
                these have a large mean.
        """
        rounding = (
            0.0 if like is None else torch.finfo(self.growth_dtype).eps ** 0.5 * _largest(like)
        )
        within = MAX_NORMAL_DEVIATIONS * (std + rounding) + self.absolute_tolerance
        over = x.abs() - within
        if self.has_unknown_entries:
            over.nan_to_num_(nan=0.0, posinf=math.inf)
        if over.numel() and not over.max() <= 0:
            self.faults.append(Fault(message, _largest(x), float(torch.as_tensor(within).max())))

    def merge_copies(self, channels: ChannelMap, dim: int, factors: Tensor | None) -> None:
        """Check that copies are equal up to their factors, and keep the first of each.

        Args:
            channels: Map of the dimension.
            dim: Dimension.
            factors: (new size,), the factor of each copy; None for no factors.
        """
        copies, sizes = self.x, self.summed_magnitudes
        self.apply(lambda x: channels.select_first_copies_in_source_order(x, dim))
        own = None if factors is None else factors[channels.first_copy_of_source]
        rounded = 0 if factors is None or channels.has_equal_shares else SHARE_ROUNDINGS + 1
        for new, old, size in channels.copied_runs if channels.max_copies > 1 else ():
            if channels.first_copy_of_source[old : old + size].tolist() == list(
                range(new, new + size)
            ):
                continue
            first, copy = self.x.narrow(dim, old, size), copies.narrow(dim, new, size)
            first_size = (
                None
                if self.summed_magnitudes is None
                else self.summed_magnitudes.narrow(dim, old, size)
            )
            ratio: Tensor | float = 1.0
            if rounded and factors is not None and own is not None:
                ratio = broadcast_along(
                    own[old : old + size] / factors[new : new + size], dim, copy
                )
                copy = copy * ratio
            if not self.has_unknown_entries and torch.equal(first, copy):
                continue

            def magnitudes(
                first: Tensor = first,
                copy: Tensor = copy,
                first_size: Tensor | None = first_size,
                run: tuple[int, int] = (new, size),
                ratio: Tensor | float = ratio,
            ) -> Tensor:
                if sizes is None or first_size is None:
                    return first.abs() + copy.abs()
                return first_size + sizes.narrow(dim, *run) * ratio

            self.require_close(first - copy, magnitudes, "copies differ", rounded)
            if self.has_unknown_entries:  # a further copy may be known where the first is not
                unknown = first.isnan()
                first.copy_(torch.where(unknown, copy, first))
                if sizes is not None and first_size is not None:
                    copy_size = sizes.narrow(dim, new, size) * ratio
                    first_size.copy_(torch.where(unknown, copy_size, first_size))
        if own is not None and bool((own != 1).any()):
            self.is_summed = True
            self.divide(broadcast_along(own, dim, self.x))

    def sum_parts(self, channels: ChannelMap, dim: int) -> None:
        """Check that parts are as near to their shares as the grid of half precision allows, and sum them.

        Args:
            channels: Map of the dimension.
            dim: Dimension.
        """
        before = (self.x, self.summed_magnitudes, self.num_roundings, self.absolute_tolerance)
        shares = channels.shares[~channels.is_filler]
        # A step of the grid is at most `eps` of the largest part, and two parts may be off by one each.
        steps = 0.0 if has_exact_shares(channels) else 4 * float(shares.max() / shares.min())
        self.add_roundings(steps)
        self.absolute_tolerance += 2 * self.smallest_subnormal * float(shares.max() / shares.min())
        self.merge_copies(channels, dim, channels.shares)
        if not self.has_unknown_entries:
            self.x, self.summed_magnitudes, self.num_roundings, self.absolute_tolerance = before
            self.sum_copies(channels, dim, channels.shares)

    def sum_copies(self, channels: ChannelMap, dim: int, factors: Tensor | None) -> None:
        """Sum copies that differ by noise, which cancels in the sum; the arguments are those of `merge_copies`."""
        old, most = self.x, channels.max_copies
        self.x = channels.sum_copies(old, dim)
        self.summed_magnitudes = channels.sum_copies(
            old if self.summed_magnitudes is None else self.summed_magnitudes, dim, magnitudes=True
        )
        # For each copy: the product with its share, the added noise, and the sum here.
        self.add_roundings(SHARE_ROUNDINGS + most)
        self.absolute_tolerance *= most
        self.is_summed = True
        if factors is None:
            counts = torch.bincount(channels.source.clamp(min=0), minlength=channels.old_size)
            fillers = int(channels.is_filler.sum())
            counts[0] -= fillers
            self.divide(broadcast_along(counts.double(), dim, self.x))


def all_finite(x: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    # If the sum is finite, all entries are, and the sum takes a tenth of the time.
    return math.isfinite(float(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))) or bool(
        torch.isfinite(x).all()
    )


def _largest(x: Tensor) -> float:
    return float(x.abs().nan_to_num(nan=0.0).max()) if x.numel() else 0.0


def other_dims(x: Tensor, kept: Iterable[int]) -> list[int]:
    """Return the dimensions of a tensor that are not in `kept`."""
    return [dim for dim in range(x.ndim) if dim not in set(kept)]


def is_followed_by_noise(later: Sequence[Any], dim: int) -> bool:
    """Return whether noise is added to the copies along a dimension that have just been made.

    Args:
        later: Transforms after the one that makes the copies.
        dim: Dimension.
    """
    for transform in later:
        if transform.adds_noise_along(dim):
            return True
        if transform.selects_along(dim):
            return False
    return False
