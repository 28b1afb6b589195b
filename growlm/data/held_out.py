"""The documents that are held out of training: the same whether a corpus lies on disk or is read on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from growlm.data.shuffling import mixture_order
from growlm.data.sources import Source
from growlm.data.tokenizers import Tokenizer
from growlm.data.tokenizing import encode_documents, token_type

Document = tuple[np.ndarray, int]
"""Its tokens, (num_tokens,), and its bytes as UTF-8 text."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out documents, one after another.

    Attributes:
        tokens: Theirs, (num_tokens,).
        num_bytes: Their length as UTF-8 text; what begins and ends a text does not count.
        num_documents: How many.
    """

    tokens: np.ndarray
    num_bytes: int
    num_documents: int


def streamed(source: Source, tokenizer: Tokenizer, validation_every: int) -> Iterator[Document]:
    """Documents n-1, 2n-1, ... of a source, tokenized one by one, only those that are asked for."""
    reader = source.read()
    for number, text in enumerate(reader, start=1):
        if number % validation_every == 0:
            found = encode_documents([text], tokenizer)
            yield found.tokens, int(found.num_bytes[0])


def gather(
    parts: Sequence[Iterable[Document]],
    counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    enough: int,
) -> HeldOut:
    """The first documents of several sources, mixed as for training, whole ones, until there are enough tokens.

    Args:
        parts: Of each source, in file order.
        counts: Documents that every block of the mixture takes from each. One that has no more is passed over.
        seed: Of the mixture's order.
        tokenizer: What encoded them.
        enough: Tokens.
    """
    pieces: list[np.ndarray] = [np.zeros(0, token_type(tokenizer))]
    num_tokens = num_bytes = 0
    for tokens, size in _mixed([iter(part) for part in parts], counts, seed):
        pieces.append(tokens)
        num_tokens += len(tokens)
        num_bytes += size
        if num_tokens >= enough:
            break
    return HeldOut(np.concatenate(pieces), num_bytes, len(pieces) - 1)


def _mixed(
    parts: Sequence[Iterator[Document]], counts: Sequence[int], seed: int
) -> Iterator[Document]:
    left = set(range(len(parts)))
    for block in count():
        for index in mixture_order(seed, block, counts):
            if index not in left:
                continue
            document = next(parts[index], None)
            if document is not None:
                yield document
                continue
            left.discard(int(index))
            if not left:
                return
