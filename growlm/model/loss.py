"""The language-model loss without ever holding all logits.

Shapes: N tokens, D residual channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Logits of one chunk, in fp32; small enough for a cache to help, large enough for matrix products."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Chunk by chunk: logits, loss, and at once the gradients of both factors, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        num_tokens = len(hidden)
        exact = torch.promote_types(dtype, torch.float32)
        weight_cast = weight.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        rows = max(1, CHUNK_BYTES // (4 * len(weight)))
        for start in range(0, num_tokens, rows):
            chunk = hidden[start : start + rows].to(dtype)
            target = targets[start : start + rows].unsqueeze(1)
            scores = torch.log_softmax(chunk @ weight_cast.T, dim=-1, dtype=exact)
            total -= scores.gather(1, target).sum()
            if not (wants_hidden or wants_weight):
                continue
            scores.exp_().scatter_add_(1, target, scores.new_full(target.shape, -1.0))
            gradient = scores.mul_(1.0 / num_tokens).to(dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = gradient @ weight_cast
            if grad_weight is not None:
                grad_weight += gradient.T @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        factor = grads[0]
        scaled = [None if g is None else g.mul_(factor.to(g.dtype)) for g in ctx.saved_tensors]
        return scaled[0], scaled[1], None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T`, in at least fp32; products in autocast's precision.

    Its gradient can be taken once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), token ids.
    """
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, dtype)
