"""The validation split, which is the same whether a corpus lies on disk or is streamed."""

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
from growlm.data.unknown_limit import UnknownTally

Value = TypeVar("Value")
TokenizedDocument = tuple[np.ndarray, int]
"""A document's tokens, (num_tokens,), and the number of bytes of UTF-8 text that they stand for."""


@dataclass(frozen=True, eq=False)
class ValidationSplit:
    """The validation documents, one after another.

    Attributes:
        tokens: Token ids of all documents, (num_tokens,).
        ends: End of each document in `tokens`, (num_documents,), int64.
        document_bytes: Bytes of each document as UTF-8 text, without the tokens that begin and end it and without
            what the tokenizer has no token for, (num_documents,), int64.
    """

    tokens: np.ndarray
    ends: np.ndarray
    document_bytes: np.ndarray

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.ends)

    def measure_first_documents(self, num_tokens: int) -> tuple[int, int]:
        """Return the numbers of tokens and bytes of the documents that contain the first `num_tokens` tokens.

        Documents count as a whole.
        """
        index = min(int(np.searchsorted(self.ends, num_tokens)), self.num_documents - 1)
        return int(self.ends[index]), int(self.document_bytes[: index + 1].sum())


def stream_validation_documents(
    source: DocumentSource, tokenizer: Tokenizer, validation_every: int, tally: UnknownTally
) -> Iterator[TokenizedDocument]:
    """Yield a source's validation documents (n-1, 2n-1, ...), each tokenized when it is requested.

    Args:
        source: Source of the documents.
        tokenizer: Tokenizer to encode them with.
        validation_every: Every n-th document is one of them.
        tally: Tally to which each is added: what of it has no token.
    """
    reader = source.read()
    for number, text in enumerate(reader, start=1):
        if number % validation_every == 0:
            document = tokenize_chunk([text], tokenizer)
            size, unknown = int(document.num_bytes[0]), sum(document.unknown_parts.values())
            tally.add(size, unknown, document.unknown_parts)
            yield document.tokens, size - unknown


def collect_validation_split(
    sources: Sequence[Iterable[TokenizedDocument]],
    block_counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    min_tokens: int,
) -> ValidationSplit:
    """Collect the first validation documents of several sources until there are enough tokens.

    Documents are mixed as for training, and are never cut.

    Args:
        sources: Validation documents of each source, in file order.
        block_counts: Documents that every block of the mixture takes from each source. Exhausted sources are
            skipped.
        seed: Seed of the mixture's order.
        tokenizer: Tokenizer that encoded the documents.
        min_tokens: Number of tokens to collect.
    """
    token_arrays: list[np.ndarray] = [np.zeros(0, token_dtype(tokenizer))]
    ends, document_bytes = [0], []
    for tokens, size in interleave([iter(source) for source in sources], block_counts, seed):
        token_arrays.append(tokens)
        ends.append(ends[-1] + len(tokens))
        document_bytes.append(size)
        if ends[-1] >= min_tokens:
            break
    return ValidationSplit(
        np.concatenate(token_arrays),
        np.array(ends[1:], np.int64),
        np.array(document_bytes, np.int64),
    )


def interleave(
    iterators: Sequence[Iterator[Value]], block_counts: Sequence[int], seed: int
) -> Iterator[Value]:
    """Yield all items of several iterators in the order of a mixture, keeping each iterator's own order."""
    remaining = set(range(len(iterators)))
    for block in count():
        for index in mixture_order(seed, block, block_counts):
            if index not in remaining:
                continue
            try:
                yield next(iterators[index])
            except StopIteration:
                remaining.discard(int(index))
            if not remaining:
                return
