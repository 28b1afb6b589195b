"""What a growth did to each entry of a tensor, and to that entry's gradient: one vector per dimension.

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
    """The factors along one dimension, vectors of its size."""

    weight: Tensor
    """fp64: what entries were multiplied with (a)."""
    gradient: Tensor
    """fp64: what their gradients were multiplied with (b)."""
    norm_share: Tensor
    """fp64: one over the number of copies, the part of a copy in the ungrown model's gradient norm."""
    original: Tensor
    """bool: kept, or the first copy of its source."""

    @staticmethod
    def ones(size: int) -> DimFactors:
        """Nothing happened."""
        one = torch.ones(size, dtype=torch.float64)
        return DimFactors(one, one, one, torch.ones(size, dtype=torch.bool))

    def select(
        self, channels: ChannelMap, *, weight_shares: bool = False, gradient_shares: bool = False
    ) -> DimFactors:
        """Those of the grown dimension; a filler has factors of one and is not original.

        Args:
            channels: The dimension's growth.
            weight_shares: Copies were multiplied with their shares.
            gradient_shares: Their gradients were.
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
        """After all entries were multiplied by `factor` where what follows undoes it."""
        return DimFactors(
            self.weight * factor, self.gradient / factor, self.norm_share, self.original
        )


ScaleFactors = tuple[DimFactors, ...]
"""Of a tensor: one per dimension."""


def unit_factors(shape: Sequence[int]) -> ScaleFactors:
    """Of a tensor that nothing happened to."""
    return tuple(DimFactors.ones(size) for size in shape)


def replace_dim_factors(factors: ScaleFactors, dim: int, new: DimFactors) -> ScaleFactors:
    """With other factors along one dimension."""
    return (*factors[:dim], new, *factors[dim + 1 :])


def mark_all_original(factors: ScaleFactors) -> ScaleFactors:
    """What the next boundary starts from: all that is there now is original."""
    return tuple(
        DimFactors(f.weight, f.gradient, f.norm_share, torch.ones_like(f.original)) for f in factors
    )


def outer_product(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The outer product of one vector per dimension of `like`, in its precision and on its device.

    If it is sharded: this process's rows of the product, a plain tensor.
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
    """The value of all entries of the outer product, if they have one value."""
    value = 1.0
    for vector in vectors:
        if bool((vector != vector[0]).any()):
            return None
        value *= float(vector[0])
    return value


def original_mask(factors: ScaleFactors, like: Tensor) -> Tensor:
    """Which entries of `like` belong to the original block: original along every dimension. 1.0 or 0.0.

    As `product`.
    """
    return outer_product([f.original for f in factors], like)
