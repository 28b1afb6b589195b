"""Causal softmax attention: each position attends to itself and to those before it.

Shapes: B batch, T time, H query heads, K key/value heads, G = H/K query heads per key/value head, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MATMUL_ATTENTION_LENGTH = 512
"""Sequence length up to which, in bf16 on a CPU, two plain products beat torch's fused kernel.

They are three times as fast at 256 tokens and equally fast at 1,024, where the kernel also needs less memory."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(query · key / √C) · value over the positions up to each query's own.

    Args:
        query: (B, H, T, C).
        key: (B, K, T, C); query head h reads head h // G.
        value: (B, K, T, C).

    Returns:
        The attention output, (B, H, T, C).
    """
    length = query.shape[2]
    half = query.dtype == torch.bfloat16
    if query.device.type == "cpu" and half and length <= MAX_MATMUL_ATTENTION_LENGTH:
        with torch.autocast("cpu", enabled=False):
            return _MatmulAttention.apply(query, key, value)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


class _MatmulAttention(torch.autograd.Function):
    """Attention with all scores at once, in the query's dtype; the softmax is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, _, length, channels = query.shape
        stacks = batch * key.shape[1]
        rows = query.reshape(stacks, -1, channels)  # (B·K, G·T, C): a group shares its keys
        key, value = (x.reshape(stacks, length, channels) for x in (key, value))
        scale = channels**-0.5
        future = query.new_full((length, length), float("-inf")).triu(1)
        mask = future.repeat(rows.shape[1] // length, 1).expand(stacks, -1, -1)
        scores = torch.baddbmm(mask, rows, key.mT, alpha=scale)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(rows, key, value, weights)
        ctx.scale, ctx.shape = scale, query.shape
        return torch.bmm(weights, value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, key, value, weights = ctx.saved_tensors
        grad = grads[0].reshape(rows.shape)
        grad_weights = torch.bmm(grad, value.mT)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        batch = ctx.shape[0]
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale)
        grad_key = torch.bmm(grad_scores.mT, rows).mul_(ctx.scale)
        grad_value = torch.bmm(weights.mT, grad)
        return (
            grad_query.view(ctx.shape),
            grad_key.unflatten(0, (batch, -1)),
            grad_value.unflatten(0, (batch, -1)),
        )
