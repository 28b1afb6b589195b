"""The documents that are held out of training: the same whether a corpus lies on disk or is read on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np

from growlm.data.shuffling import mixture_order
from growlm.data.sources.document_sources import Source
from growlm.data.tokenization.parallel_tokenization import encode_documents, token_type
from growlm.data.tokenization.tokenizer import Tokenizer

Value = TypeVar("Value")
Document = tuple[np.ndarray, int]
"""Its tokens, (num_tokens,), and its bytes as UTF-8 text."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out documents, one after another.

    Attributes:
        tokens: Theirs, (num_tokens,).
        ends: Where each ends, (num_documents,), int64.
        sizes: Bytes of each as UTF-8 text; what begins and ends a text does not count, (num_documents,), int64.
    """

    tokens: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    @property
    def num_documents(self) -> int:
        """How many."""
        return len(self.ends)

    def first_documents(self, num_tokens: int) -> tuple[int, int]:
        """Tokens and bytes of the documents, whole ones, that the first so many tokens are of."""
        index = min(int(np.searchsorted(self.ends, num_tokens)), self.num_documents - 1)
        return int(self.ends[index]), int(self.sizes[: index + 1].sum())


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
    ends, sizes = [0], []
    for tokens, size in take_turns([iter(part) for part in parts], counts, seed):
        pieces.append(tokens)
        ends.append(ends[-1] + len(tokens))
        sizes.append(size)
        if ends[-1] >= enough:
            break
    return HeldOut(np.concatenate(pieces), np.array(ends[1:], np.int64), np.array(sizes, np.int64))


def take_turns(
    parts: Sequence[Iterator[Value]], counts: Sequence[int], seed: int
) -> Iterator[Value]:
    """Everything of several sources, each in its order, in the order of a mixture."""
    left = set(range(len(parts)))
    for block in count():
        for index in mixture_order(seed, block, counts):
            if index not in left:
                continue
            try:
                yield next(parts[index])
            except StopIteration:
                left.discard(int(index))
            if not left:
                return
