"""Follow a grown tensor back through its chain, and check what every step of the chain guarantees.

Nothing is drawn: copies must equal each other or, where noise was added, sum to their source; what was filled must
hold what it was filled with. What random numbers alone decide is free, within the range that they are drawn from.

Tolerances are bounds on rounding: a step that rounds an entry moves it by at most half of the stored precision's
`eps` times its magnitude, and a sum of entries is off by the sum of these. Where no step has rounded, the
comparison is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along

MAX_NORMAL_DEVIATIONS = 10.0
"""Standard deviations within which drawn numbers lie: the table of quantiles ends at 4.3, and of 10**22 normal
numbers one is beyond 10."""
SHARE_ROUNDINGS = 3
"""A share is rounded to the tensor's precision, multiplied by, and divided by again here."""
NOISE_ROUNDINGS = 8
"""For each copy, when numbers of mean zero are made of more than two: a sum, a quotient, and differences."""


@dataclass(frozen=True)
class Fault:
    """Something that a step guarantees and the tensor does not hold.

    Args:
        what: What is wrong, to follow the tensor's name.
        difference: How far the worst entry is off.
        allowed: How far rounding may move that entry.
    """

    message: str
    difference: float | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        if self.difference is None:
            return self.message
        return (
            f"{self.message} (off by {self.difference:.1e}, rounding allows {self.tolerance:.1e})"
        )


@dataclass
class Reconstruction:
    """A grown tensor, and what it must have been made of, step by step, the last step first.

    Args:
        x: The tensor, in at least fp32; never written to.
        stored_as: The precision that it was grown in.
        make: Makes the tensor that a step was given, out of the steps before it; with random numbers, or none.
        session: What the tensors of one model tell each other: which hidden units were drawn anew.
    """

    x: Tensor
    growth_dtype: torch.dtype
    rebuild: Callable[[Sequence[Any], bool], Tensor]
    shared_state: dict[Any, Tensor]
    faults: list[Fault] = field(default_factory=list)
    earlier_transforms: Sequence[Any] = ()
    """The steps before the one that is undone."""
    summed_magnitudes: Tensor | None = None
    """The magnitudes that were added up in each entry; those of `x` if None."""
    num_roundings: float = 0
    """How often an entry was rounded; each time by at most half an `eps` of its size."""
    absolute_tolerance: float = 0.0
    """What rounding may have changed beyond that: numbers below the precision's range, and noise."""
    noisy_dims: set[int] = field(default_factory=set)
    """Dimensions whose copies differ by noise."""
    is_summed: bool = False
    """Whether shares or copies have been added up."""
    has_unknown_entries: bool = False
    """Whether entries that can be anything have been replaced by NaN, which no comparison sees. Others cannot be
    NaN: the tensor's own entries have been found finite."""
    is_done: bool = False
    """Whether nothing of what was before the last step that was undone is left in the tensor."""
    is_random: bool = False
    """Whether all of what that step has made is random."""

    @property
    def unit_roundoff(self) -> float:
        """What one rounding moves an entry by, relative to its size."""
        return torch.finfo(self.growth_dtype).eps / 2

    def add_roundings(self, count: float) -> None:
        """Note that every entry has been rounded so often."""
        self.num_roundings += count
        self.absolute_tolerance += count * self.smallest_subnormal

    @property
    def smallest_subnormal(self) -> float:
        """The distance of numbers below the precision's normal range, to which they are rounded."""
        info = torch.finfo(self.growth_dtype)
        return info.smallest_normal * info.eps

    def rebuild_input(self, *, with_random: bool = False) -> Tensor:
        """Make what the step that is undone was given, as far as it does not depend on chance.

        Args:
            drawn: With random numbers where there are any, other ones than those of the growth.
        """
        return self.rebuild(self.earlier_transforms, with_random)

    def add_fault(self, message: str) -> None:
        """Note a fault that is no difference of numbers."""
        self.faults.append(Fault(message))

    def magnitudes(self, part: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """What rounding is relative to, in a part of the tensor or in all of it."""
        return (
            part(self.x).abs() if self.summed_magnitudes is None else part(self.summed_magnitudes)
        )

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Make another tensor of this one, its sizes alike."""
        self.x = function(self.x)
        self.summed_magnitudes = (
            None if self.summed_magnitudes is None else function(self.summed_magnitudes)
        )

    def add_mean_roundings(self, dim: int, roundings: float) -> None:
        """Note that some entries are means over a dimension, which are rounded in other ways for every copy."""
        sizes = self.magnitudes()
        self.summed_magnitudes = sizes + sizes.mean(dim=dim, keepdim=True)
        self.add_roundings(roundings)

    def divide(self, factors: float | Tensor) -> None:
        """Undo a multiplication by a number, or by one for each entry of a dimension."""
        self.apply(lambda x: x / factors)
        values = factors.unique().tolist() if isinstance(factors, Tensor) else [factors]
        self.absolute_tolerance = (self.absolute_tolerance + self.smallest_subnormal) / min(
            abs(value) for value in values
        )
        if any(math.frexp(value)[0] != 0.5 for value in values):
            self.add_roundings(SHARE_ROUNDINGS)

    def require_close(
        self,
        difference: Tensor,
        sizes: Tensor | Callable[[], Tensor],
        message: str,
        roundings: float = 0,
    ) -> None:
        """Check that a difference is no more than rounding.

        Args:
            difference: Of entries of `x`; overwritten.
            sizes: The magnitudes that were added up in it.
            what: What is wrong, if it is more.
            roundings: Further ones than those of `x`.
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
        # Written so that a NaN, of infinite entries, is a fault.
        if excess.numel() and not excess.max() <= 0:
            worst = int(excess.nan_to_num_(nan=math.inf).argmax())
            bound = float(allowed.flatten()[worst] if isinstance(allowed, Tensor) else allowed)
            self.faults.append(Fault(message, float(excess.flatten()[worst]) + bound, bound))

    def require_equal(self, other: Tensor, message: str) -> None:
        """Check that the tensor is another one, up to rounding.

        Args:
            other: In the same precision.
            what: What is wrong, if it is not.
        """
        if not self.has_unknown_entries and torch.equal(self.x, other):
            return
        self.require_close(self.x - other, self.magnitudes, message)

    def require_in_normal_range(
        self, x: Tensor, std: Tensor | float, message: str, like: Tensor | None = None
    ) -> None:
        """Check that entries can have been drawn with a mean of zero and this standard deviation.

        Args:
            x: The entries.
            std: The deviation, or one for each member of a stack.
            what: What is wrong, if they cannot.
            like: The entries that the deviation is of; it has been rounded, most where these have a large mean.
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
        """Check that copies are equal, but for their factors, and keep the first of each.

        Args:
            channels: The dimension's map.
            dim: The dimension.
            factors: (new size,), what each copy was multiplied by; None for nothing.
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
            if self.has_unknown_entries:  # another copy may be known where the first is not
                unknown = first.isnan()
                first.copy_(torch.where(unknown, copy, first))
                if sizes is not None and first_size is not None:
                    copy_size = sizes.narrow(dim, new, size) * ratio
                    first_size.copy_(torch.where(unknown, copy_size, first_size))
        if own is not None and bool((own != 1).any()):
            self.is_summed = True
            self.divide(broadcast_along(own, dim, self.x))

    def sum_copies(self, channels: ChannelMap, dim: int, factors: Tensor | None) -> None:
        """Add up copies that differ by noise, which cancels in the sum; arguments as `merge_copies`."""
        old, most = self.x, channels.max_copies
        self.x = channels.sum_copies(old, dim)
        self.summed_magnitudes = channels.sum_copies(
            old if self.summed_magnitudes is None else self.summed_magnitudes, dim, magnitudes=True
        )
        # Of each copy: the product with its share, the noise that is added, the sum of both here.
        self.add_roundings(SHARE_ROUNDINGS + most)
        self.absolute_tolerance *= most
        self.is_summed = True
        if factors is None:
            counts = torch.bincount(channels.source.clamp(min=0), minlength=channels.old_size)
            fillers = int(channels.is_filler.sum())
            counts[0] -= fillers
            self.divide(broadcast_along(counts.double(), dim, self.x))


def all_finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # A sum is not finite if an entry is not, and takes a tenth of the time.
    return math.isfinite(float(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))) or bool(
        torch.isfinite(x).all()
    )


def _largest(x: Tensor) -> float:
    return float(x.abs().nan_to_num(nan=0.0).max()) if x.numel() else 0.0


def other_dims(x: Tensor, kept: Iterable[int]) -> list[int]:
    """The dimensions of a tensor that are none of these."""
    return [dim for dim in range(x.ndim) if dim not in set(kept)]


def is_followed_by_noise(later: Sequence[Any], dim: int) -> bool:
    """Whether noise is added to the copies along a dimension that have just been made.

    Args:
        later: The steps after the one that makes them.
        dim: The dimension.
    """
    for step in later:
        if step.adds_noise_along(dim):
            return True
        if step.selects_along(dim):
            return False
    return False
