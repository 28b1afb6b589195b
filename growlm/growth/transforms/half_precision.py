"""Split weights in half precision so that the parts add up to them, to the bit.

A weight w in bf16 or fp16 is an integer times `ulp(w)`, the distance of its neighbors. Parts of the same sign are
chosen as integers times the `ulp` of the largest of them, which divides w: such parts are numbers of that
precision, and their sum in exact arithmetic is w. Rounding each part by itself would be off by up to half an `ulp`
of each.

Everything is computed in fp32, which holds these numbers and their sums without rounding, and entry by entry, so
that it does not depend on the machine or on how a tensor is cut into blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap, broadcast_along

HALF_DTYPES = (torch.bfloat16, torch.float16)
"""Precisions in which rounding shows, and parts are made on the grid."""
BLOCK_ENTRIES = 2**19
"""The number of entries that are split at once: several times as much memory is used for intermediate results."""
MARGIN = 1 + 2.0**-12
"""Factor on parts before their grid is chosen: rounding up must not lead to a coarser one."""


def is_half(dtype: torch.dtype) -> bool:
    """Return whether this is one of the half precisions."""
    return dtype in HALF_DTYPES


def compute_ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of neighboring numbers of a precision at each entry of x, an fp32 tensor >= 0."""
    info = torch.finfo(dtype)
    power_of_two = x.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)
    return power_of_two.mul_(info.eps).clamp_(min=info.smallest_normal * info.eps)


def has_exact_shares(channels: ChannelMap) -> bool:
    """Return whether all shares are powers of two, so that products are exact above the subnormal numbers."""
    shares = channels.shares[~channels.is_filler].unique().tolist()
    return all(math.frexp(share)[0] == 0.5 for share in shares)


def multiply_by_shares(x: Tensor, channels: ChannelMap, dim: int) -> None:
    """Turn copies of a weight, in place, into parts that add up to it and are as near to their shares as can be.

    Part j is the sum of the first j shares less that of the first j - 1, each rounded to the grid, so that it is
    at most one step from its share. Halves and quarters are exact; three thirds of 128 steps are 43, 42 and 43.

    Args:
        x: Tensor in half precision whose copies along `dim` hold the whole weight; fillers may hold anything.
        channels: Map of the dimension.
        dim: Dimension.
    """
    lower, upper = (_fp32_along(bound, dim, x) for bound in channels.share_bounds)
    largest = _fp32_along(channels.largest_shares * MARGIN, dim, x)
    for part in _blocks(x, dim):
        weight = part.float()
        step = compute_ulp(weight.abs().mul_(largest), x.dtype)
        weight.div_(step)  # an integer
        below = (weight * lower).round_()
        part.copy_(weight.mul_(upper).round_().sub_(below).mul_(step))


def move_between_two(first: Tensor, second: Tensor, amount: Tensor) -> None:
    """Add an amount to each entry of one copy and take it from the other, in place, without changing their sum.

    The larger of the two is rounded, and the other one takes what is left. That is a number of the precision,
    because the larger one's grid divides the sum.

    Args:
        first: Copies in half precision.
        second: The other copies; each has the sign of the first or is zero.
        amount: fp32, at most as large as the smaller of the two; overwritten.
    """
    dtype, largest = first.dtype, torch.finfo(first.dtype).max
    one = first.float()
    mean = one.mul(0.5).add_(second.float(), alpha=0.5)
    amount.add_(one.sub_(mean))  # of the first copy from the mean
    size = mean.abs()
    larger = amount.abs().add_(size).clamp_(max=largest).to(dtype).float()
    amount = larger.sub_(size).copysign_(amount)
    first.copy_(mean + amount)
    second.copy_(mean.sub_(amount))


def move_between_many(copies: Sequence[Tensor], amounts: Sequence[Tensor]) -> None:
    """Add amounts that sum to zero to the copies of each weight, in place, without changing their sum.

    Where a copy would change its sign, or leave the grid of a sum that is no number of the precision, the amounts
    of all copies of that weight are reduced until it does not.

    Args:
        copies: Copies in half precision; those of one weight have one sign or are zero.
        amounts: fp32, for each copy.
    """
    dtype = copies[0].dtype
    old = [copy.float() for copy in copies]
    total = sum_tensors(old)
    sign = total.sign()
    total.mul_(sign)
    old = [part.mul_(sign) for part in old]
    moves = [amount * sign for amount in amounts]
    scale = _limit_moves(old, moves, total, dtype)
    parts = [part.addcmul(move, scale).clamp_(min=0) for part, move in zip(old, moves, strict=True)]
    largest = _maximum(parts)
    step = compute_ulp(largest * MARGIN, dtype)
    steps = total / step
    # Sums and amounts near the largest number overflow: those copies stay as they are.
    is_on_grid = (steps - steps.round()) + (largest - largest) == 0
    all_on_grid = bool(is_on_grid.all())
    below, upto = torch.zeros_like(steps), torch.zeros_like(steps)
    for index, (copy, part, before) in enumerate(zip(copies, parts, old, strict=True)):
        upto += part
        above = steps if index == len(copies) - 1 else (upto / step).round_()
        new = (above - below).mul_(step)
        copy.copy_((new if all_on_grid else torch.where(is_on_grid, new, before)).mul_(sign))
        below = above


def _limit_moves(
    parts: Sequence[Tensor], moves: Sequence[Tensor], total: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the factor on the moves of each weight: 1, or less if a part would leave its range.

    Args:
        parts: Magnitudes of the copies, fp32.
        moves: Amounts to add to each.
        total: Sum of the magnitudes.
        dtype: Half precision of the copies.
    """
    scale = torch.ones_like(total)
    limit = None
    if not torch.equal(rounded := total.to(dtype).float(), total):
        eps = torch.finfo(dtype).eps
        largest = compute_ulp(_maximum(parts), dtype).mul_(2 / eps - 2)
        limit = torch.where(rounded == total, total, largest)
    for part, move in zip(parts, moves, strict=True):
        free = part / move.clamp(max=0).abs_()
        if limit is not None:  # of the two, the one against which the part moves is not negative
            free = torch.maximum(part / -move, (limit - part).clamp_(min=0) / move)
        torch.minimum(scale, free.nan_to_num_(nan=1.0), out=scale)
    return scale


def sum_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, as a new one."""
    out = tensors[0].clone()
    for tensor in tensors[1:]:
        out += tensor
    return out


def _maximum(tensors: Sequence[Tensor]) -> Tensor:
    out = tensors[0].clone()
    for tensor in tensors[1:]:
        torch.maximum(out, tensor, out=out)
    return out


def _fp32_along(vector: Tensor, dim: int, x: Tensor) -> Tensor:
    """Return a vector, rounded to fp32, shaped to multiply x along `dim`."""
    return broadcast_along(vector, dim, x.new_empty((0,) * x.ndim, dtype=torch.float32))


def _blocks(x: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield parts of x of limited size, split across its largest other dimension."""
    others = [(size, other) for other, size in enumerate(x.shape) if other != dim]
    if not others or x.numel() <= BLOCK_ENTRIES:
        yield x
        return
    size, other = max(others)
    yield from x.split(max(1, size * BLOCK_ENTRIES // x.numel()), dim=other)
