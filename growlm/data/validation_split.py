"""The documents that are held out of training: the same whether a corpus lies on disk or is read on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np

from growlm.data.shuffling import mixture_order
from growlm.data.sources.document_sources import DocumentSource
from growlm.data.tokenization.parallel_tokenization import token_dtype, tokenize_chunk
from growlm.data.tokenization.tokenizer import Tokenizer

Value = TypeVar("Value")
TokenizedDocument = tuple[np.ndarray, int]
"""Its tokens, (num_tokens,), and its bytes as UTF-8 text."""


@dataclass(frozen=True, eq=False)
class ValidationSplit:
    """Held-out documents, one after another.

    Attributes:
        tokens: Theirs, (num_tokens,).
        ends: Where each ends, (num_documents,), int64.
        sizes: Bytes of each as UTF-8 text; what begins and ends a text does not count, (num_documents,), int64.
    """

    tokens: np.ndarray
    ends: np.ndarray
    document_bytes: np.ndarray

    @property
    def num_documents(self) -> int:
        """How many."""
        return len(self.ends)

    def measure_first_documents(self, num_tokens: int) -> tuple[int, int]:
        """Tokens and bytes of the documents, whole ones, that the first so many tokens are of."""
        index = min(int(np.searchsorted(self.ends, num_tokens)), self.num_documents - 1)
        return int(self.ends[index]), int(self.document_bytes[: index + 1].sum())


def stream_validation_documents(
    source: DocumentSource, tokenizer: Tokenizer, validation_every: int
) -> Iterator[TokenizedDocument]:
    """Documents n-1, 2n-1, ... of a source, tokenized one by one, only those that are asked for."""
    reader = source.read()
    for number, text in enumerate(reader, start=1):
        if number % validation_every == 0:
            found = tokenize_chunk([text], tokenizer)
            yield found.tokens, int(found.num_bytes[0])


def collect_validation_split(
    sources: Sequence[Iterable[TokenizedDocument]],
    block_counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    min_tokens: int,
) -> ValidationSplit:
    """The first documents of several sources, mixed as for training, whole ones, until there are enough tokens.

    Args:
        parts: Of each source, in file order.
        counts: Documents that every block of the mixture takes from each. One that has no more is passed over.
        seed: Of the mixture's order.
        tokenizer: What encoded them.
        enough: Tokens.
    """
    pieces: list[np.ndarray] = [np.zeros(0, token_dtype(tokenizer))]
    ends, sizes = [0], []
    for tokens, size in interleave([iter(part) for part in sources], block_counts, seed):
        pieces.append(tokens)
        ends.append(ends[-1] + len(tokens))
        sizes.append(size)
        if ends[-1] >= min_tokens:
            break
    return ValidationSplit(
        np.concatenate(pieces), np.array(ends[1:], np.int64), np.array(sizes, np.int64)
    )


def interleave(
    iterators: Sequence[Iterator[Value]], block_counts: Sequence[int], seed: int
) -> Iterator[Value]:
    """Everything of several sources, each in its order, in the order of a mixture."""
    left = set(range(len(iterators)))
    for block in count():
        for index in mixture_order(seed, block, block_counts):
            if index not in left:
                continue
            try:
                yield next(iterators[index])
            except StopIteration:
                left.discard(int(index))
            if not left:
                return
