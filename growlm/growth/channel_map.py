"""The map of one axis: which old channel each new channel copies, and its share of that channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

FILLER = -1
"""The source of a channel that copies none."""


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """The map of an axis from `old_size` channels to `len(source)` channels.

    Args:
        old_size: Number of channels before.
        source: (new size,): the old channel that each new channel copies, or `FILLER`.
        shares: (new size,), fp64: the part of its source that a copy carries when read. The shares of all
            copies of a source sum to one; a filler's share is zero.
    """

    old_size: int
    source: Tensor
    shares: Tensor

    @staticmethod
    def with_equal_shares(old_size: int, source: Tensor) -> ChannelMap:
        """Return the map in which all copies of a channel carry equal parts of it."""
        copied = source != FILLER
        copies = torch.bincount(source[copied], minlength=old_size).double()
        shares = torch.where(copied, 1.0 / copies[source.clamp(min=0)], 0.0)
        return ChannelMap(old_size, source, shares)

    @staticmethod
    def with_rising_shares(old_size: int, source: Tensor) -> ChannelMap:
        """Return the map in which the c-th copy carries c parts: 1:2 for two copies, 1:2:3 for three."""
        rank = torch.zeros(len(source), dtype=torch.float64)
        seen = [0] * old_size
        for channel, origin in enumerate(source.tolist()):
            if origin != FILLER:
                seen[origin] += 1
                rank[channel] = seen[origin]
        totals = torch.tensor([n * (n + 1) / 2 for n in seen], dtype=torch.float64)
        return ChannelMap(old_size, source, rank / totals[source.clamp(min=0)].clamp(min=1))

    @staticmethod
    def identity(size: int) -> ChannelMap:
        """Return the map that changes nothing."""
        return ChannelMap.with_equal_shares(size, torch.arange(size))

    @staticmethod
    def tiled(old_size: int, new_size: int) -> ChannelMap:
        """Return as many full copies as fit, then fillers: the only lossless way along the residual stream."""
        full = new_size // old_size
        fillers = torch.full((new_size - full * old_size,), FILLER)
        return ChannelMap.with_equal_shares(
            old_size, torch.cat((torch.arange(old_size).repeat(full), fillers))
        )

    @staticmethod
    def round_robin(old_size: int, new_size: int) -> ChannelMap:
        """Return the map in which channel j copies j mod old_size; numbers of copies differ by at most one."""
        return ChannelMap.with_equal_shares(old_size, torch.arange(new_size) % old_size)

    @property
    def new_size(self) -> int:
        """The number of channels after."""
        return len(self.source)

    @property
    def is_filler(self) -> Tensor:
        """The mask (new size,) of channels that copy none."""
        return self.source == FILLER

    @property
    def has_fillers(self) -> bool:
        """Whether any channel copies none."""
        return bool(self.is_filler.any())

    @property
    def has_equal_shares(self) -> bool:
        """Whether all copies of a channel have the same share of it."""
        copied = ~self.is_filler
        whole = self.shares[copied] * self.copy_counts()[copied]
        return bool(torch.allclose(whole, torch.ones_like(whole)))

    @cached_property
    def period(self) -> int:
        """The size of the first full copy if the other channels repeat it; else the number of all channels."""
        whole = torch.arange(self.old_size).repeat(-(-self.new_size // self.old_size))
        return self.old_size if torch.equal(self.source, whole) else self.new_size

    def expand_units(self, unit_size: int) -> ChannelMap:
        """Return the map of single channels, where this one maps whole units (heads) of `unit_size` channels."""
        source = (self.source.unsqueeze(1) * unit_size + torch.arange(unit_size)).flatten()
        source[self.is_filler.repeat_interleave(unit_size)] = FILLER
        return ChannelMap(
            self.old_size * unit_size, source, self.shares.repeat_interleave(unit_size)
        )

    def without_copies(self) -> ChannelMap:
        """Return the map that keeps the first copy of each channel and makes all others fillers."""
        source = torch.where(self.is_first_copy, self.source, FILLER)
        return ChannelMap.with_equal_shares(self.old_size, source)

    def then(self, later: ChannelMap) -> ChannelMap:
        """Return this map followed by another; a copy of a filler is a filler."""
        before = later.source.clamp(min=0)
        source = torch.where(later.is_filler, FILLER, self.source[before])
        return ChannelMap(self.old_size, source, self.shares[before] * later.shares)

    @cached_property
    def ranks(self) -> Tensor:
        """The number of copies of the same source before each channel, (new size,); 0 for fillers."""
        order = torch.argsort(self.source, stable=True)
        ordered = self.source[order]
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(self.new_size) - torch.searchsorted(ordered, ordered)
        return torch.where(self.is_filler, 0, ranks)

    @cached_property
    def copy_groups(self) -> list[Tensor]:
        """Channels that are copies, by how many copies their source has: one tensor (copies, sources) each."""
        counts, groups = self.copy_counts(), []
        for count in counts.unique().tolist():
            if count > 1:
                channels = (counts == count).nonzero().squeeze(1)
                order = torch.argsort(self.source[channels], stable=True)
                groups.append(channels[order].view(-1, count).T)
        return groups

    @cached_property
    def share_bounds(self) -> tuple[Tensor, Tensor]:
        """Sums of the shares of a source's copies, up to each channel without it and with it, (new size,), fp64.

        The second is exactly 1 for the last copy; for every other copy it is the first of the next one.
        """
        lower, upper = torch.zeros_like(self.shares), torch.zeros_like(self.shares)
        total = torch.zeros(self.old_size, dtype=torch.float64)
        for rank in range(self.max_copies):
            channels = ((self.ranks == rank) & ~self.is_filler).nonzero().squeeze(1)
            lower[channels] = total[self.source[channels]]
            total[self.source[channels]] += self.shares[channels]
            upper[channels] = total[self.source[channels]]
        upper[(self.ranks == self.copy_counts() - 1) & ~self.is_filler] = 1.0
        return lower, upper

    @cached_property
    def largest_shares(self) -> Tensor:
        """The largest share of any copy of each channel's source, (new size,), fp64; 1 for fillers."""
        largest = torch.zeros(self.old_size, dtype=torch.float64)
        channels = (~self.is_filler).nonzero().squeeze(1)
        largest.scatter_reduce_(0, self.source[channels], self.shares[channels], "amax")
        return torch.where(self.is_filler, 1.0, largest[self.source.clamp(min=0)])

    @cached_property
    def max_copies(self) -> int:
        """The largest number of copies of any channel."""
        return int(self.copy_counts().max())

    @cached_property
    def is_append_only(self) -> bool:
        """Whether all old channels keep their places and full shares, and all channels after them are fillers."""
        fillers = torch.full((self.new_size - self.old_size,), FILLER)
        return torch.equal(self.source, torch.cat((torch.arange(self.old_size), fillers)))

    @cached_property
    def duplicate_pairs(self) -> Tensor:
        """Pairs (pairs, 2) of the first copy of a channel and each further copy."""
        channels = torch.arange(self.new_size)[~self.is_filler]
        sources = self.source[channels]
        first = torch.full((self.old_size,), self.new_size)
        first.scatter_reduce_(0, sources, channels, "amin")
        further = first[sources] != channels
        return torch.stack((first[sources[further]], channels[further]), dim=1)

    def copy_counts(self) -> Tensor:
        """Return the number of copies of each channel's source, (new size,); 0 for fillers."""
        copied = ~self.is_filler
        counts = torch.bincount(self.source[copied], minlength=self.old_size)
        return torch.where(copied, counts[self.source.clamp(min=0)], 0)

    @property
    def is_first_copy(self) -> Tensor:
        """Mask (new size,): True for the first copy of each source, False for further copies and fillers."""
        first = ~self.is_filler
        first[self.duplicate_pairs[:, 1]] = False
        return first

    def select_first_copies(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the first copy of every channel along `dim`; a view if they precede all others."""
        if self._begins_with_first_copies:
            return tensor.narrow(dim, 0, self.old_size)
        return tensor.index_select(dim, self._first_copy_indices.to(tensor.device))

    @cached_property
    def first_copy_of_source(self) -> Tensor:
        """The first copy of each old channel, (old size,)."""
        first = torch.full((self.old_size,), FILLER)
        channels = self._first_copy_indices
        first[self.source[channels]] = channels
        return first

    def select_first_copies_in_source_order(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the first copy of every channel along `dim`, in the order of the old ones; a view if possible."""
        if torch.equal(self.first_copy_of_source, torch.arange(self.old_size)):
            return tensor.narrow(dim, 0, self.old_size)
        return tensor.index_select(dim, self.first_copy_of_source.to(tensor.device))

    @cached_property
    def _first_copy_indices(self) -> Tensor:
        return self.is_first_copy.nonzero().squeeze(1)

    @cached_property
    def _begins_with_first_copies(self) -> bool:
        return torch.equal(self._first_copy_indices, torch.arange(self.old_size))

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        """Return a new tensor whose entry j along `dim` is the old entry source[j]; fillers are left unwritten."""
        return select_along(tensor, {dim: self})

    @cached_property
    def copied_runs(self) -> list[tuple[int, ...]]:
        """Runs of neighbors that copy neighbors: (first new channel, first old channel, length)."""
        copied = (~self.is_filler).nonzero().squeeze(1)
        return find_consecutive_runs(copied, self.source[copied])

    def sum_copies(self, tensor: Tensor, dim: int, *, magnitudes: bool = False) -> Tensor:
        """Sum a tensor, or its magnitudes, over the copies of each old channel: `dim` goes to the old size."""
        shape = list(tensor.shape)
        shape[dim] = self.old_size
        out = tensor.new_zeros(shape)
        for new, old, size in self.copied_runs:
            part = tensor.narrow(dim, new, size)
            out.narrow(dim, old, size).add_(part.abs() if magnitudes else part)
        return out

    @cached_property
    def filler_runs(self) -> list[tuple[int, ...]]:
        """Runs of neighboring fillers: (first channel, number of fillers before it, length)."""
        fillers = self.is_filler.nonzero().squeeze(1)
        return find_consecutive_runs(fillers, torch.arange(len(fillers)))


def find_consecutive_runs(*columns: Tensor) -> list[tuple[int, ...]]:
    """Return the runs in which all columns of numbers count upwards together: (first of each column, length)."""
    rows = torch.stack(columns)
    if not rows.shape[1]:
        return []
    starts = torch.cat(
        (torch.tensor([0]), 1 + (rows.diff(dim=1) != 1).any(dim=0).nonzero().flatten())
    )
    sizes = torch.diff(starts, append=torch.tensor([rows.shape[1]]))
    return [
        (*first, size)
        for first, size in zip(rows[:, starts].T.tolist(), sizes.tolist(), strict=True)
    ]


MAX_COPY_RUNS = 256
"""The number of runs up to which they are copied one by one, which is several times faster than gathering."""


def select_along(
    tensor: Tensor, maps: Mapping[int, ChannelMap], scales: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Return `ChannelMap.select` along several dimensions in one pass, as a new tensor.

    Args:
        tensor: Old tensor.
        maps: Channel maps by dimension.
        scales: Factors of the new entries by dimension, each (new size,).
    """
    scales = {dim: broadcast_along(vector, dim, tensor) for dim, vector in (scales or {}).items()}
    if math.prod(len(channels.copied_runs) for channels in maps.values()) > MAX_COPY_RUNS:
        for dim, channels in maps.items():
            tensor = tensor.index_select(dim, channels.source.clamp(min=0).to(tensor.device))
        for factor in scales.values():
            tensor.mul_(factor)
        return tensor
    shape = list(tensor.shape)
    for dim, channels in maps.items():
        shape[dim] = channels.new_size
    out = tensor.new_empty(shape)
    for runs in product(*(channels.copied_runs for channels in maps.values())):
        target, source, factors = out, tensor, []
        for dim, (new, old, size) in zip(maps, runs, strict=True):
            target, source = target.narrow(dim, new, size), source.narrow(dim, old, size)
            factors += [scales[dim].narrow(dim, new, size)] if dim in scales else []
        if factors:
            torch.mul(source, factors[0], out=target)
        else:
            target.copy_(source)
        for factor in factors[1:]:
            target.mul_(factor)
    return out


def broadcast_along(vector: Tensor, dim: int, x: Tensor) -> Tensor:
    """Return `vector` shaped to multiply `x` along `dim`, in x's precision."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return vector.to(device=x.device, dtype=x.dtype).view(shape)
