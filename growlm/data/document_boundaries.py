"""Find where the documents of a batch begin, by the token that ends each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.model.layers.document_masks import document_positions

DocumentPositions = Callable[[Tensor], Tensor]
"""Function from tokens, (B, T), to the position of each in its document, (B, T)."""


def make_document_positions(tokenizer: Tokenizer) -> DocumentPositions:
    """Return the function that finds each token's position in its document, for documents of this tokenizer."""
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_ids
    return partial(
        document_positions, eos_token_id=eos, bos_token_id=bos[0] if eos in bos else None
    )
