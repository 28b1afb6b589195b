"""Scores of how well a model predicts a text.

Shapes: N tokens, B windows, T positions of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from growlm.model.transformer import TransformerLM


@dataclass
class Score:
    """Summed losses of predicted tokens."""

    num_tokens: int = 0
    """Number of predicted tokens."""
    nats: float = 0.0
    """Sum of their losses, −ln p."""
    num_eos_tokens: int = 0
    """Number of end-of-text tokens among them."""
    eos_nats: float = 0.0
    """Sum of the losses of the end-of-text tokens."""

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; inf if that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Return the loss in bits per byte of text, which is comparable between tokenizers.

    Gao et al. 2020 (arXiv 2101.00027), section 3.1: L_tokens / L_bytes · loss / ln 2.

    Args:
        nats: Loss summed over the text's tokens.
        num_bytes: Length of the text in UTF-8.
    """
    return nats / num_bytes / math.log(2)


def sum_token_losses(
    model: TransformerLM,
    batches: Iterable[Tensor],
    document_positions: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the summed loss and the number of predicted tokens over batches of token ids (B, T + 1).

    The model stays in its train or eval mode.

    Args:
        model: Model to score with.
        batches: Batches of tokens.
        document_positions: Function that returns each token's position in its document, (B, T + 1), to keep
            attention within documents; None for attention to all earlier tokens.

    Returns:
        The sum and the number, (2,), fp64.
    """
    device = model.embedding.weight.device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        losses = _token_losses(model, batch.to(device), None, document_positions)
        total[0] += losses.sum(dtype=torch.float64)
        total[1] += len(losses)
    return total


@dataclass(frozen=True)
class Window:
    """A window over a token sequence: the range that is read, and the part of it that is scored.

    Attributes:
        begin: Index of its first token.
        first_scored: Index of its first scored token; the tokens before are context.
        end: Index after its last token.
    """

    begin: int
    first_scored: int
    end: int


def iter_windows(length: int, sequence_length: int, stride: int) -> Iterator[Window]:
    """Yield windows over a token sequence such that each token but the first is scored exactly once.

    The first window is scored as a whole, every other one in its last `stride` tokens. The last window is as
    long as the others, so its scored part, if shorter, has more context.

    Args:
        length: Number of tokens in the sequence.
        sequence_length: T; a window has one token more, which is predicted but not read.
        stride: Distance between the ends of consecutive windows, at most T.
    """
    done = 1
    while done < length:
        end = min(length, done + (sequence_length if done == 1 else stride))
        yield Window(max(0, end - sequence_length - 1), done, end)
        done = end


def score_tokens(
    model: TransformerLM,
    tokens: np.ndarray,
    context_mask: np.ndarray | None,
    *,
    sequence_length: int,
    stride: int,
    batch_size: int,
    eos_token_id: int,
    document_positions: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Score:
    """Score every token of a sequence but the first.

    Args:
        model: Model in eval mode.
        tokens: Token ids, (N,).
        context_mask: Which tokens are read but not scored, (N,), bool; None for none.
        sequence_length: Length of a window; see `iter_windows`.
        stride: Distance between windows; see `iter_windows`.
        batch_size: Number of windows per batch.
        eos_token_id: End-of-text token, whose loss is also summed separately.
        document_positions: As for `sum_token_losses`.
        progress: Function called with the number of tokens done and the total.

    Returns:
        The summed losses.
    """
    device = model.embedding.weight.device
    score = Score()
    for batch in _batch_windows(iter_windows(len(tokens), sequence_length, stride), batch_size):
        inputs = np.stack([tokens[w.begin : w.end] for w in batch]).astype(np.int64)
        scored = np.zeros((len(batch), inputs.shape[1] - 1), dtype=bool)
        for scored_row, window in zip(scored, batch, strict=True):
            scored_row[window.first_scored - window.begin - 1 :] = (
                True if context_mask is None else ~context_mask[window.first_scored : window.end]
            )
        targets = inputs[:, 1:][scored]
        if len(targets):
            ids, mask = torch.from_numpy(inputs).to(device), torch.from_numpy(scored).to(device)
            losses = _token_losses(model, ids, mask, document_positions).double().cpu().numpy()
            is_eos = targets == eos_token_id
            score.num_tokens += len(targets)
            score.nats += float(losses.sum())
            score.num_eos_tokens += int(is_eos.sum())
            score.eos_nats += float(losses[is_eos].sum())
        progress(batch[-1].end - 1, len(tokens) - 1)
    return score


def _token_losses(
    model: TransformerLM,
    batch: Tensor,
    score_mask: Tensor | None,
    document_positions: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    if document_positions is None:
        return model.token_losses(batch, score_mask)
    return model.token_losses(batch, score_mask, document_positions(batch))


def _batch_windows(found: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Yield up to `size` consecutive windows of equal length at a time."""
    batch: list[Window] = []
    for window in found:
        if batch and (
            len(batch) == size or window.end - window.begin != batch[0].end - batch[0].begin
        ):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
