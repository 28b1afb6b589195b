"""Rotary positions (Su et al. 2021, arXiv 2104.09864).

Shapes: B batch, T time, C channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growlm.model.config import ModelConfig


def rotary_tables(length: int, config: ModelConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles of positions 0 to `length`, each (length, C/2).

    Computed at every forward pass in at least fp32: a table kept as a buffer would be one more tensor for
    growth, sharding and checkpoints to carry, and saves microseconds.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    exponents = (
        torch.arange(0, config.head_dim, 2, device=like.device, dtype=dtype) / config.head_dim
    )
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = torch.outer(positions, config.rope_theta**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + C/2) of x.

    Args:
        x: (B, heads, T, C).
        cos: (T, C/2), or (B, 1, T, C/2) where sequences are at positions of their own.
        sin: Likewise.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
