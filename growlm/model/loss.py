"""The language-model loss, computed without holding all logits at once.

Shapes: N tokens, D residual channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from growlm.model.tracing import is_tracing

CHUNK_BYTES = 256 * 2**20
"""Size of one chunk's logits. Larger chunks need fewer additions to the weight's gradient."""
BLOCK_BYTES = 4 * 2**20
"""Size of the part of a chunk that a CPU passes through the softmax at once; it should fit into the cache."""
LOGITS_ROW_ALIGNMENT = 64
"""Multiple that each row of the logits is padded to: products are up to a third faster."""


def cap_logits(logits: Tensor, softcap: float | None) -> Tensor:
    """Return softcap · tanh(logits / softcap), or the logits as they are if there is no bound (Gemma 2)."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy, chunk by chunk.

    The forward pass computes the gradients of both factors, too, so that no logits are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
        bias: Tensor | None,
    ) -> Tensor:
        num_tokens, vocabulary = len(hidden), len(weight)
        needs_hidden_grad, needs_weight_grad, *_, needs_bias_grad = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if needs_hidden_grad else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias) if needs_bias_grad and bias is not None else None
        loss = torch.zeros(
            (), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device
        )
        hidden_cast, weight_cast = hidden.to(dtype), weight.to(dtype)
        bias_cast = None if bias is None else bias.to(dtype)
        width = -(-vocabulary // LOGITS_ROW_ALIGNMENT) * LOGITS_ROW_ALIGNMENT
        chunk_rows = min(num_tokens, max(1, CHUNK_BYTES // (width * hidden_cast.element_size())))
        # Zeros, not `new_empty`: with an odd vocabulary, oneDNN's AMX kernels read a column of the padding and
        # multiply it by zero. Uninitialized memory may hold NaN, and NaN · 0 = NaN.
        padded = hidden_cast.new_zeros(chunk_rows, width)
        for start in range(0, num_tokens, chunk_rows):
            chunk = hidden_cast[start : start + chunk_rows]
            scores = padded[: len(chunk), :vocabulary]
            if bias_cast is None:
                torch.mm(chunk, weight_cast.T, out=scores)
            else:
                torch.addmm(bias_cast, chunk, weight_cast.T, out=scores)
            tanh = None if softcap is None else scores.div_(softcap).tanh_().clone()
            if softcap is not None:
                scores.mul_(softcap)
            loss += _loss_and_gradient(scores, targets[start : start + chunk_rows], loss.dtype)
            if tanh is not None:
                scores.mul_(1 - tanh.square_())
            if grad_hidden is not None:
                grad_hidden[start : start + chunk_rows] = scores @ weight_cast
            if needs_weight_grad:
                # The product of whole rows is faster; the rows that the padding adds are cut off.
                chunk_grad = (padded[: len(chunk)].T @ chunk)[:vocabulary]
                grad_weight = (
                    chunk_grad.to(weight.dtype)
                    if grad_weight is None
                    else grad_weight.add_(chunk_grad)
                )
            if grad_bias is not None:
                grad_bias += scores.sum(0, dtype=loss.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.num_tokens = num_tokens
        return loss / num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0] / ctx.num_tokens
        hidden, weight, bias = (
            None if g is None else g.mul_(factor.to(g.dtype)) for g in ctx.saved_tensors
        )
        return hidden, weight, None, None, None, bias


def _loss_and_gradient(scores: Tensor, targets: Tensor, exact: torch.dtype) -> Tensor:
    """Return the summed loss of logits (n, V) and replace the logits by its gradient."""
    rows = len(scores)
    if scores.device.type == "cpu":
        rows = max(1, _block_bytes() // (scores.shape[1] * exact.itemsize))
    loss = torch.zeros((), dtype=exact, device=scores.device)
    for block, target in zip(scores.split(rows), targets.unsqueeze(1).split(rows), strict=True):
        logarithms = torch.log_softmax(block, dim=-1, dtype=exact)
        loss -= logarithms.gather(1, target).sum()
        logarithms.exp_().scatter_add_(1, target, logarithms.new_full(target.shape, -1.0))
        block.copy_(logarithms)
    return loss


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of each token, (N,), in at least fp32 and without a gradient.

    Products are in autocast's precision, as in `linear_cross_entropy`.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: Token ids, (N,).
        softcap: Bound on the logits; see `cap_logits`.
        bias: Added to the logits, (V,); None for none.
    """
    dtype = matmul_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        rows = max(1, CHUNK_BYTES // (len(weight) * dtype.itemsize))
        losses = []
        for chunk, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            scores = chunk @ weight.T if bias is None else torch.addmm(bias, chunk, weight.T)
            scores = cap_logits(scores, softcap)
            exact = torch.promote_types(dtype, torch.float32)
            block_rows = _block_bytes() // (len(weight) * exact.itemsize)
            block_rows = max(1, block_rows) if scores.device.type == "cpu" else len(scores)
            for block_scores, block_targets in zip(
                scores.split(block_rows), target.split(block_rows), strict=True
            ):
                losses.append(
                    F.cross_entropy(block_scores.to(exact), block_targets, reduction="none")
                )
        return torch.cat(losses)


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of products with a tensor: autocast's if it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the logits `hidden @ weight.T + bias`, in at least fp32.

    Products are in autocast's precision. The backward pass can run only once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: Token ids, (N,).
        softcap: Bound on the logits; see `cap_logits`.
        bias: Added to the logits, (V,); None for none.
    """
    if not torch.is_grad_enabled():  # the autograd function would compute the gradients anyway
        return token_losses(hidden, weight, targets, softcap, bias).mean()
    dtype = matmul_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, dtype, softcap, bias)


def _block_bytes() -> int:
    # Tracing hundreds of blocks would take seconds.
    return 8 * BLOCK_BYTES if is_tracing() else BLOCK_BYTES
