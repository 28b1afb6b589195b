"""Compute and apply rotary position embeddings (RoPE; Su et al. 2021, arXiv 2104.09864).

Shapes: B batch, T time, C channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growlm.model.config import ModelConfig


def rotary_tables(length: int, config: ModelConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of the rotary angles of positions 0 to `length`, each (length, C/2).

    They are computed at every forward pass in at least fp32: a buffer would be one more tensor for growth,
    sharding and checkpoints to handle, and would save only microseconds.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    exponents = (
        torch.arange(0, config.head_dim, 2, device=like.device, dtype=dtype) / config.head_dim
    )
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = torch.outer(positions, config.rope.theta**-exponents)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + C/2) of x.

    Args:
        x: (B, heads, T, C).
        cos: (T, C/2), or (B, 1, T, C/2) if sequences have positions of their own.
        sin: Of the same shape as `cos`.
    """
    return _ApplyRotary.apply(x, cos.to(x.dtype), sin.to(x.dtype))


class _ApplyRotary(torch.autograd.Function):
    """The rotation, bit-identical to autograd's version with half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_into(x, cos, sin, x.new_empty(x.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        batch, heads, length, channels = grads[0].shape
        # The memory layout of the projection's output; its backward pass would copy any other.
        out = grads[0].new_empty(batch, length, heads, channels).transpose(1, 2)
        return _rotate_into(grads[0], cos, -sin, out), None, None


def _rotate_into(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    (first, second), (new_first, new_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first).sub_(second * sin)
    torch.mul(second, cos, out=new_second).add_(first * sin)
    return out
