"""The language-model loss without ever holding all logits.

Shapes: N tokens, D residual channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 * 2**20
"""Logits of one chunk: the more tokens, the fewer sums into the gradient of the weight."""
BLOCK_BYTES = 4 * 2**20
"""Of a chunk, what a CPU takes through the softmax at once, in at least fp32: it should stay in the cache."""
LOGITS_ROW_ALIGNMENT = 64
"""Rows of the logits begin at multiples of this many entries: products are up to a third faster."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Chunk by chunk: logits, loss, and at once the gradients of both factors, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        num_tokens, vocabulary = len(hidden), len(weight)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        loss = torch.zeros(
            (), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device
        )
        hidden_cast, weight_cast = hidden.to(dtype), weight.to(dtype)
        width = -(-vocabulary // LOGITS_ROW_ALIGNMENT) * LOGITS_ROW_ALIGNMENT
        rows = min(num_tokens, max(1, CHUNK_BYTES // (width * hidden_cast.element_size())))
        # Zeros, not `new_empty`: oneDNN's AMX kernels read a column of the padding when the vocabulary is odd and
        # multiply it by zero; what uninitialised memory holds may be NaN, and NaN · 0 = NaN.
        padded = hidden_cast.new_zeros(rows, width)
        for start in range(0, num_tokens, rows):
            chunk = hidden_cast[start : start + rows]
            scores = padded[: len(chunk), :vocabulary]
            torch.mm(chunk, weight_cast.T, out=scores)
            loss += _loss_and_gradient(scores, targets[start : start + rows], loss.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = scores @ weight_cast
            if (
                wants_weight
            ):  # the product of whole rows is faster; what their padding gives is cut off
                part = (padded[: len(chunk)].T @ chunk)[:vocabulary]
                grad_weight = (
                    part.to(weight.dtype) if grad_weight is None else grad_weight.add_(part)
                )
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.num_tokens = num_tokens
        return loss / num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        factor = grads[0] / ctx.num_tokens
        scaled = [None if g is None else g.mul_(factor.to(g.dtype)) for g in ctx.saved_tensors]
        return scaled[0], scaled[1], None, None


def _loss_and_gradient(scores: Tensor, targets: Tensor, exact: torch.dtype) -> Tensor:
    """The summed loss of logits (n, V), which are replaced by its gradient."""
    rows = len(scores)
    if scores.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (scores.shape[1] * exact.itemsize))
    loss = torch.zeros((), dtype=exact, device=scores.device)
    for block, target in zip(scores.split(rows), targets.unsqueeze(1).split(rows), strict=True):
        logarithms = torch.log_softmax(block, dim=-1, dtype=exact)
        loss -= logarithms.gather(1, target).sum()
        logarithms.exp_().scatter_add_(1, target, logarithms.new_full(target.shape, -1.0))
        block.copy_(logarithms)
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, (N,), in at least fp32 and without a gradient; else as `linear_cross_entropy`.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), token ids.
    """
    dtype = _matmul_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        rows = max(1, CHUNK_BYTES // (len(weight) * dtype.itemsize))
        losses = []
        for chunk, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            scores = chunk @ weight.T
            exact = torch.promote_types(dtype, torch.float32)
            block = BLOCK_BYTES // (len(weight) * exact.itemsize)
            block = max(1, block) if scores.device.type == "cpu" else len(scores)
            for some, wanted in zip(scores.split(block), target.split(block), strict=True):
                losses.append(F.cross_entropy(some.to(exact), wanted, reduction="none"))
        return torch.cat(losses)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T`, in at least fp32; products in autocast's precision.

    Its gradient can be taken once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), token ids.
    """
    if not torch.is_grad_enabled():  # an autograd function would make the gradients all the same
        return token_losses(hidden, weight, targets).mean()
    dtype = _matmul_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, dtype)
