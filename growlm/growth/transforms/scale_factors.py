"""Track the factors by which a growth multiplied a tensor's entries and gradients, one vector per dimension.

Every factor is a product over dimensions, so a few vectors describe a tensor of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.distributed.dtensors import get_local_rows, get_local_tensor
from growlm.growth.channel_map import ChannelMap


@dataclass(frozen=True, eq=False)
class DimFactors:
    """The factors along one dimension, as vectors of its size."""

    weight: Tensor
    """fp64: factor of the entries (a)."""
    gradient: Tensor
    """fp64: factor of their gradients (b)."""
    norm_share: Tensor
    """fp64: one over the number of copies, the part of a copy in the old model's gradient norm."""
    original: Tensor
    """bool: whether the entry was kept, or is the first copy of its source."""

    @staticmethod
    def ones(size: int) -> DimFactors:
        """Return the factors of a dimension that was not changed."""
        one = torch.ones(size, dtype=torch.float64)
        return DimFactors(one, one, one, torch.ones(size, dtype=torch.bool))

    def select(
        self, channels: ChannelMap, *, weight_shares: bool = False, gradient_shares: bool = False
    ) -> DimFactors:
        """Return the factors of the grown dimension; a filler has factors of one and is not original.

        Args:
            channels: Map of the dimension.
            weight_shares: Whether copies were multiplied by their shares.
            gradient_shares: Whether the gradients of copies were multiplied by their shares.
        """

        def take(vector: Tensor, by: Tensor | None = None) -> Tensor:
            taken = vector[channels.source.clamp(min=0)]
            taken = taken if by is None else taken * by
            return torch.where(channels.is_filler, torch.ones_like(taken), taken)

        return DimFactors(
            take(self.weight, channels.shares if weight_shares else None),
            take(self.gradient, channels.shares if gradient_shares else None),
            take(self.norm_share, 1.0 / channels.copy_counts().clamp(min=1).double()),
            self.original[channels.source.clamp(min=0)] & channels.is_first_copy,
        )

    def scale(self, factor: float) -> DimFactors:
        """Return the factors after all entries were multiplied by `factor` and a later step undoes it."""
        return DimFactors(
            self.weight * factor, self.gradient / factor, self.norm_share, self.original
        )


ScaleFactors = tuple[DimFactors, ...]
"""The factors of a tensor, one per dimension."""


def unit_factors(shape: Sequence[int]) -> ScaleFactors:
    """Return the factors of a tensor that was not changed."""
    return tuple(DimFactors.ones(size) for size in shape)


def replace_dim_factors(factors: ScaleFactors, dim: int, new: DimFactors) -> ScaleFactors:
    """Return the factors with those of one dimension replaced."""
    return (*factors[:dim], new, *factors[dim + 1 :])


def mark_all_original(factors: ScaleFactors) -> ScaleFactors:
    """Return the factors with all entries marked as original, as the next boundary needs them."""
    return tuple(
        DimFactors(f.weight, f.gradient, f.norm_share, torch.ones_like(f.original)) for f in factors
    )


def outer_product(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the outer product of one vector per dimension of `like`, in its precision and on its device.

    If `like` is sharded, the result is this process's rows of the product, as a plain tensor.
    """
    out = torch.ones((), dtype=like.dtype, device=like.device)
    rows = get_local_rows(like)
    like = get_local_tensor(like)
    for dim, vector in enumerate(vectors):
        vector = vector[rows] if dim == 0 else vector
        shape = [1] * like.ndim
        shape[dim] = -1
        out = out * vector.to(like).view(shape)
    return out


def common_value(vectors: Sequence[Tensor]) -> float | None:
    """Return the value of all entries of the outer product, or None if they differ."""
    value = 1.0
    for vector in vectors:
        if bool((vector != vector[0]).any()):
            return None
        value *= float(vector[0])
    return value


def original_mask(factors: ScaleFactors, like: Tensor) -> Tensor:
    """Return 1.0 for the entries of `like` that are original along every dimension, and 0.0 for the others.

    Sharded tensors are treated as in `outer_product`.
    """
    return outer_product([f.original for f in factors], like)
