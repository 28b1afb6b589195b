"""Compute and apply rotary position embeddings (RoPE; Su et al. 2021, arXiv 2104.09864).

Shapes: B batch, T time, C channels of a head, R of them rotated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growlm.model.config import ModelConfig
from growlm.model.layers.rope_scaling import scale_frequencies


def rotary_tables(length: int, config: ModelConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of the rotary angles of positions 0 to `length`, each (length, R/2).

    They are computed at every forward pass in at least fp32: a buffer would be one more tensor for growth,
    sharding and checkpoints to handle, and would save only microseconds.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    size, rope = config.rotary_dim, config.rope
    exponents = torch.arange(0, size, 2, device=like.device, dtype=dtype) / size
    frequencies, factor = scale_frequencies(rope.scaling, rope.theta**-exponents, rope.theta)
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = torch.outer(positions, frequencies)
    if factor == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * factor, angles.sin() * factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + R/2) of x; channels from R on are left as they are.

    Args:
        x: (B, heads, T, C).
        cos: (T, R/2), or (B, 1, T, R/2) if sequences have positions of their own.
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
    size = cos.shape[-1]
    first, second, rest = x.tensor_split((size, 2 * size), dim=-1)
    new_first, new_second, new_rest = out.tensor_split((size, 2 * size), dim=-1)
    torch.mul(first, cos, out=new_first).sub_(second * sin)
    torch.mul(second, cos, out=new_second).add_(first * sin)
    if rest.shape[-1]:
        new_rest.copy_(rest)
    return out
