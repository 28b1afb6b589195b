"""One endless token stream over documents on disk: any position is found by arithmetic, nothing is held in memory.

The stream has the documents of one epoch in shuffled order, then those of the next epoch, and so on. The
documents in a shuffle window do not depend on their order, so the number of tokens before a window is known
without computing any permutation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from growlm.data.memory_map import release_pages
from growlm.data.shuffling import mixture_order, window_order

MAX_CACHED = 4
"""Permutations or blocks kept in memory. Reading goes forward, but may restart a window or block a few times."""
RELEASE_INTERVAL = 10_000
"""Number of documents after which the mapped pages that were read are released."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class TokenStream(ABC):
    """An endless sequence of documents and their tokens."""

    @abstractmethod
    def count_tokens_before(self, number: int) -> int:
        """Return the number of tokens in documents 0 ... number-1 of the stream."""

    @abstractmethod
    def find_document(self, position: int) -> int:
        """Return the index of the document that contains token `position` of the stream."""

    @abstractmethod
    def document(self, number: int) -> np.ndarray:
        """Return the tokens of one document, (num_tokens,)."""

    def read(self, position: int, count: int) -> np.ndarray:
        """Return tokens `position` ... `position + count - 1` of the stream, (count,), int64."""
        number = self.find_document(position)
        start, parts, remaining = position - self.count_tokens_before(number), [], count
        while remaining:
            part = self.document(number)[start : start + remaining]
            parts.append(part.astype(np.int64))
            remaining -= len(part)
            number, start = number + 1, 0
        return np.concatenate(parts)


class ShuffledDocuments(TokenStream):
    """Documents of one corpus in shuffled order, epoch after epoch.

    Args:
        tokens: Token ids of all documents in file order, (num_tokens,); may be memory-mapped.
        ends: End of each document in `tokens`, (num_documents,), ascending.
        window: Number of documents that are shuffled together.
        seed: Seed of the order.
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, window: int, seed: int) -> None:
        self.tokens, self.ends, self.window, self.seed = tokens, ends, window, seed
        self.num_documents, self.num_tokens = len(ends), len(tokens)
        self._last_release = 0
        self._orders: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def count_tokens_before(self, number: int) -> int:
        """Return the number of tokens in documents 0 ... number-1 of the stream."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        begin = epoch * self.num_tokens + self._document_start(window * self.window)
        return begin if within == 0 else begin + int(self._order(epoch, window)[1][within - 1])

    def find_document(self, position: int) -> int:
        """Return the index of the document that contains token `position` of the stream."""
        epoch, rest = divmod(position, self.num_tokens)
        window = int(np.searchsorted(self.ends, rest, side="right")) // self.window
        within = rest - self._document_start(window * self.window)
        index = int(np.searchsorted(self._order(epoch, window)[1], within, side="right"))
        return epoch * self.num_documents + window * self.window + index

    def document(self, number: int) -> np.ndarray:
        """Return the tokens of one document, (num_tokens,), a view."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        index = window * self.window + int(self._order(epoch, window)[0][within])
        return self.tokens[self._document_start(index) : int(self.ends[index])]

    def token_ranges(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where in `tokens` the stream's documents `first` ... `first + count - 1` begin and end.

        Both arrays are (count,), int64.
        """
        indices = []
        while count:
            epoch, rest = divmod(first, self.num_documents)
            window, within = divmod(rest, self.window)
            part = window * self.window + self._order(epoch, window)[0][within : within + count]
            indices.append(part)
            first, count = first + len(part), count - len(part)
        index = np.concatenate(indices)
        return np.where(index, self.ends[index - 1], 0), self.ends[index].astype(np.int64)

    def _order(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a window's permutation, and the end of each document relative to the window's beginning."""

        def make() -> tuple[np.ndarray, np.ndarray]:
            first = window * self.window
            if first // RELEASE_INTERVAL != self._last_release:
                self._last_release = first // RELEASE_INTERVAL
                release_pages(self.tokens)
                release_pages(self.ends)
            ends = self.ends[first : first + self.window].astype(np.int64)
            lengths = np.diff(ends, prepend=self._document_start(first))
            order = window_order(self.seed, epoch, window, len(lengths))
            return order, np.cumsum(lengths[order])

        return _cached(self._orders, (epoch, window), make)

    def _document_start(self, number: int) -> int:
        """Return where in `tokens` document `number` (in file order) begins."""
        return int(self.ends[number - 1]) if number else 0


@dataclass(frozen=True, eq=False)
class _MixtureBlock:
    """The documents of one block of a mixture, in order.

    Attributes:
        begin: Number of tokens of the stream before the block.
        stream_indices: Index of the source stream of each document, (num_documents,).
        starts: Start of each document in its source's tokens, (num_documents,), int64.
        ends: End of each document in its source's tokens, (num_documents,), int64.
        cumulative_tokens: Tokens of the block up to each document's end, (num_documents,), int64.
    """

    begin: int
    stream_indices: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    cumulative_tokens: np.ndarray

    @property
    def end(self) -> int:
        """Number of tokens of the stream up to the end of the block."""
        return self.begin + int(self.cumulative_tokens[-1])


class MixedDocuments(TokenStream):
    """Documents of several streams, mixed block by block (`mixture_order`); each stream advances at its own pace.

    Sequential reading is fast: a block knows where its documents lie, and the next one begins where it ends.

    Args:
        streams: Streams to mix.
        block_counts: Documents that every block takes from each stream.
        seed: Seed of the order.
    """

    def __init__(
        self, streams: Sequence[ShuffledDocuments], block_counts: Sequence[int], seed: int
    ) -> None:
        self.streams, self.block_counts, self.seed = list(streams), list(block_counts), seed
        self.block_size = sum(block_counts)
        self._last_block = 0
        self._blocks: OrderedDict[int, _MixtureBlock] = OrderedDict()

    def count_tokens_before(self, number: int) -> int:
        """Return the number of tokens in documents 0 ... number-1 of the stream."""
        number, within = divmod(number, self.block_size)
        block = self._get_block(number)
        return block.begin + (int(block.cumulative_tokens[within - 1]) if within else 0)

    def find_document(self, position: int) -> int:
        """Return the index of the document that contains token `position` of the stream."""
        if position >= self._get_block(self._last_block).end:
            self._last_block += 1
        block = self._get_block(self._last_block)
        if not block.begin <= position < block.end:  # random access
            self._last_block = self._find_block(position)
            block = self._get_block(self._last_block)
        index = int(np.searchsorted(block.cumulative_tokens, position - block.begin, side="right"))
        return self._last_block * self.block_size + index

    def document(self, number: int) -> np.ndarray:
        """Return the tokens of one document, (num_tokens,), a view."""
        number, within = divmod(number, self.block_size)
        block = self._get_block(number)
        tokens = self.streams[int(block.stream_indices[within])].tokens
        return tokens[int(block.starts[within]) : int(block.ends[within])]

    def _find_block(self, position: int) -> int:
        """Return the index of the block that contains a token."""
        upper = 1
        while self._block_start(upper) <= position:
            upper *= 2
        return bisect_right(range(upper), position, key=self._block_start) - 1

    def _block_start(self, number: int) -> int:
        if (previous := self._blocks.get(number - 1)) is not None:
            return previous.end
        counts = zip(self.streams, self.block_counts, strict=True)
        return sum(stream.count_tokens_before(number * count) for stream, count in counts)

    def _get_block(self, number: int) -> _MixtureBlock:
        def make() -> _MixtureBlock:
            stream_indices = mixture_order(self.seed, number, self.block_counts)
            starts, ends = np.empty_like(stream_indices), np.empty_like(stream_indices)
            for index, (stream, count) in enumerate(
                zip(self.streams, self.block_counts, strict=True)
            ):
                from_stream = stream_indices == index
                starts[from_stream], ends[from_stream] = stream.token_ranges(number * count, count)
            return _MixtureBlock(
                self._block_start(number), stream_indices, starts, ends, np.cumsum(ends - starts)
            )

        return _cached(self._blocks, number, make)


def _cached(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """Return a cached value, made on first use and dropped when it is no longer among the last few used."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > MAX_CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
