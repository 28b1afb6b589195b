"""Causal softmax attention: each position attends to itself and to those before it, or to the last of them.

Shapes: B batch, T time, H query heads, K key/value heads, G = H/K query heads per key/value head, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MATMUL_ATTENTION_LENGTH = 512
"""Sequence length up to which, in bf16 on a CPU, two plain products beat torch's fused kernel.

They are three times as fast at 256 tokens and equally fast at 1,024, where the kernel also needs less memory."""


@dataclass(frozen=True)
class AttentionRule:
    """What the scores of a block's attention become before the softmax, and which of them count."""

    scale: float | None = None
    """Factor of the scores; None for 1 / sqrt(C)."""
    softcap: float | None = None
    """Bound on the scores, softcap · tanh(score / softcap); None for no bound."""
    window: int | None = None
    """Number of positions, its own included, that each position attends to; None for all before it."""

    def limit(self, scores: Tensor) -> Tensor:
        """Return the scores within the bound."""
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()


PLAIN = AttentionRule()


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: AttentionRule = PLAIN,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute softmax(query · key · scale) · value over the positions up to each query's own.

    Args:
        query: (B, H, T, C).
        key: (B, K, T, C); query head h reads head h // G.
        value: (B, K, T, C).
        rule: Scale, bound and window of the scores.
        mask: Number added to each score, (B, 1, T, T), which says all of what each query attends to: causality and
            window too. None for the rule's window alone.

    Returns:
        The attention output, (B, H, T, C).
    """
    length = query.shape[2]
    window = None if rule.window is None or rule.window >= length else rule.window
    half = query.dtype == torch.bfloat16
    if rule.softcap is None:
        if query.device.type == "cpu" and half and length <= MAX_MATMUL_ATTENTION_LENGTH:
            with torch.autocast("cpu", enabled=False):
                return _MatmulAttention.apply(query, key, value, rule.scale, window, mask)
        if window is None and mask is None:
            grouped = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=rule.scale, enable_gqa=grouped
            )
    if mask is None:
        positions = torch.arange(length, device=query.device)
        mask = visible_mask(positions, positions, window)
    return masked_attention(query, key, value, mask, rule)


def visible_mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return which keys each query attends to, (T, S), given their positions (T,) and (S,)."""
    distance = queries.unsqueeze(1) - keys
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule
) -> Tensor:
    """Compute attention over the keys that a mask allows; the rule's window is not applied.

    Args:
        query: (B, H, T, C).
        key: (B, K, S, C); query head h reads head h // G.
        value: (B, K, S, C).
        mask: Which keys each query attends to, (T, S) or (B, 1, T, S), boolean or as numbers added to the scores;
            None for all of them.
        rule: Scale and bound of the scores.

    Returns:
        The attention output, (B, H, T, C).
    """
    grouped = query.shape[1] != key.shape[1]
    if rule.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=rule.scale, enable_gqa=grouped
        )
    # No fused kernel of torch bounds the scores.
    return mix_values(attention_weights(query, key, mask, rule), value)


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, rule: AttentionRule
) -> Tensor:
    """Return the weight of each key for each query, (B, H, T, S); see `masked_attention`."""
    scale = query.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    groups = query.unflatten(1, (key.shape[1], -1))  # (B, K, G, T, C)
    scores = rule.limit(torch.matmul(groups, key.unsqueeze(2).mT) * scale)  # (B, K, G, T, S)
    if mask is not None:
        mask = mask if mask.ndim == 2 else mask.unsqueeze(1)
        is_boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if is_boolean else scores + mask
    return scores.softmax(dim=-1).flatten(1, 2)


def mix_values(weights: Tensor, value: Tensor) -> Tensor:
    """Return the weighted sums of the values: (B, H, T, S), (B, K, S, C) -> (B, H, T, C)."""
    groups = weights.to(value.dtype).unflatten(1, (value.shape[1], -1))  # (B, K, G, T, S)
    return torch.matmul(groups, value.unsqueeze(2)).flatten(1, 2)


class _MatmulAttention(torch.autograd.Function):
    """Attention with all scores at once, in the query's dtype; the softmax is saved for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        window: int | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        batch, _, length, channels = query.shape
        stacks = batch * key.shape[1]
        rows = query.reshape(stacks, -1, channels)  # (B·K, G·T, C): a group shares its keys
        key, value = (x.reshape(stacks, length, channels) for x in (key, value))
        scale = channels**-0.5 if scale is None else scale
        if mask is None:
            hidden = query.new_full((length, length), float("-inf")).triu(1)
            if window is not None:
                hidden += torch.full_like(hidden, float("-inf")).tril(-window)
            expanded = hidden.repeat(rows.shape[1] // length, 1).expand(stacks, -1, -1)
            scores = torch.baddbmm(expanded, rows, key.mT, alpha=scale)
        else:
            products = torch.bmm(rows, key.mT).view(batch, -1, length, length)
            scores = torch.add(mask, products, alpha=scale).view(stacks, -1, length)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(rows, key, value, weights)
        ctx.scale, ctx.shape = scale, query.shape
        return torch.bmm(weights, value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
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
            None,
            None,
            None,
        )
