"""Keep documents that are packed into one sequence apart: no attention between them, positions from 0 in each.

Shapes: B batch, T time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from growlm.model.layers.causal_attention import visible_mask


def document_positions(
    tokens: Tensor, eos_token_id: int, bos_token_id: int | None = None
) -> Tensor:
    """Return the position of each token in its own document, counted from 0, (B, T).

    A document begins after every end of text. What precedes the first one in a row is a document too, or the rest
    of one, and counts from 0.

    Args:
        tokens: (B, T).
        eos_token_id: Token that ends a document, and belongs to it.
        bos_token_id: Token that every document begins with, for tokenizers that use one token as both: only where
            this token follows an end of text does a document begin. None if the end of text is enough.
    """
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 1:] = tokens[:, :-1] == eos_token_id
    if bos_token_id is not None:
        begins[:, 1:] &= tokens[:, 1:] == bos_token_id
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return index - (begins * index).cummax(dim=1).values


def document_lengths(positions: Tensor) -> Tensor:
    """Return the length of each token's document within its row, (B, T), given the positions in it, (B, T)."""
    starts = torch.arange(positions.shape[1], device=positions.device) - positions
    lengths = torch.zeros_like(positions).scatter_reduce(1, starts, positions + 1, "amax")
    return lengths.gather(1, starts)


class BlockDocuments(NamedTuple):
    """What one block needs to keep documents apart."""

    positions: Tensor
    """Position of each token in its document, (B, T)."""
    mask: Tensor
    """Number added to each score, (B, 1, T, T): 0 where a query attends to a key, -inf elsewhere."""


class DocumentMasks:
    """The masks of a batch of packed documents, each made once for all blocks that share it.

    Args:
        positions: Position of each token in its document, (B, T).
        dtype: Dtype of the queries. A boolean mask would be converted to it in every block.
    """

    def __init__(self, positions: Tensor, dtype: torch.dtype) -> None:
        self._positions, self._dtype = positions, dtype
        self._masks: dict[int | None, Tensor] = {}

    def select(self, window: int | None) -> BlockDocuments:
        """Return the mask of blocks with this window; None for blocks without one."""
        if window is not None and window >= self._positions.shape[1]:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return BlockDocuments(self._positions, self._masks[window])

    def _make_mask(self, window: int | None) -> Tensor:
        index = torch.arange(self._positions.shape[1], device=self._positions.device)
        starts = index - self._positions
        is_visible = visible_mask(index, index, window) & (index >= starts.unsqueeze(-1))
        mask = torch.zeros(is_visible.shape, dtype=self._dtype, device=is_visible.device)
        return mask.masked_fill_(~is_visible, float("-inf")).unsqueeze(1)
