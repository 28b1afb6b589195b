"""How well a model predicts a text.

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
    """Summed losses."""

    num_tokens: int = 0
    """That were predicted."""
    nats: float = 0.0
    """The sum of their losses, −ln p."""
    num_eos_tokens: int = 0
    """Ends of text among them."""
    eos_nats: float = 0.0
    """Their part of the sum."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; inf where that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """What a text costs in bits for each of its bytes: comparable between tokenizers.

    Gao et al. 2020 (arXiv 2101.00027), section 3.1: L_tokens / L_bytes · loss / ln 2.

    Args:
        nats: Summed over the text's tokens.
        num_bytes: Length of the text in UTF-8.
    """
    return nats / num_bytes / math.log(2)


def sum_token_losses(model: TransformerLM, batches: Iterable[Tensor]) -> Tensor:
    """Sum of the losses over batches of token ids (B, T + 1), and number of the tokens, all of them predicted.

    In the mode the model is in; (2,), fp64.
    """
    device = model.embedding.weight.device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        losses = model.token_losses(batch.to(device))
        total[0] += losses.sum(dtype=torch.float64)
        total[1] += len(losses)
    return total


@dataclass(frozen=True)
class Window:
    """A stretch of a row of tokens: what is read, and which part of it is scored.

    Attributes:
        begin: Where it begins.
        scored: Its first token that is scored; those before are context.
        end: Where it ends.
    """

    begin: int
    first_scored: int
    end: int


def iter_windows(length: int, sequence_length: int, stride: int) -> Iterator[Window]:
    """Windows over a row of tokens, each of which but the first is scored exactly once.

    The first window is scored whole, every other one in its last `stride` tokens. The last reaches back as far
    as the others, so that it has more context where there is less to score.

    Args:
        length: Of the row.
        sequence_length: T; a window has one token more, whose prediction is not read on.
        stride: From the end of a window to the end of the next, at most T.
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
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Score:
    """Score every token of a row but the first.

    Args:
        model: In eval mode.
        tokens: Token ids, (N,).
        given: Which tokens are read but not scored, (N,), bool; None for none.
        sequence_length: See `windows`.
        stride: See `windows`.
        batch_size: Windows read at once.
        end_of_text: Is also counted apart.
        progress: Called with the tokens done, and how many there are.

    Returns:
        The sums.
    """
    device = model.embedding.weight.device
    score = Score()
    for batch in _batch_windows(iter_windows(len(tokens), sequence_length, stride), batch_size):
        read = np.stack([tokens[w.begin : w.end] for w in batch]).astype(np.int64)
        scored = np.zeros((len(batch), read.shape[1] - 1), dtype=bool)
        for row, window in zip(scored, batch, strict=True):
            row[window.first_scored - window.begin - 1 :] = (
                True if context_mask is None else ~context_mask[window.first_scored : window.end]
            )
        targets = read[:, 1:][scored]
        if len(targets):
            ids, mask = torch.from_numpy(read).to(device), torch.from_numpy(scored).to(device)
            losses = model.token_losses(ids, mask).double().cpu().numpy()
            is_end = targets == eos_token_id
            score.num_tokens += len(targets)
            score.nats += float(losses.sum())
            score.num_eos_tokens += int(is_end.sum())
            score.eos_nats += float(losses[is_end].sum())
        progress(batch[-1].end - 1, len(tokens) - 1)
    return score


def _batch_windows(found: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Windows of equal length, so many at a time."""
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
