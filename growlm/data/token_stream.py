"""One endless row of tokens out of documents on disk: any place of it by arithmetic, none of it in memory.

The documents of an epoch in their shuffled order, those of the next epoch after them, and so on. What a window
holds does not depend on its order, so the tokens before it are known without looking at any permutation.
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
"""Permutations, or blocks, in memory: reading goes forward, but may begin a window or block a few times."""
RELEASE_INTERVAL = 10_000
"""Documents after which what was read is let go of."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class TokenStream(ABC):
    """Documents for ever, each with its tokens."""

    @abstractmethod
    def count_tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""

    @abstractmethod
    def find_document(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""

    @abstractmethod
    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,)."""

    def read(self, position: int, count: int) -> np.ndarray:
        """Tokens `position` ... `position + count - 1` of the row, (count,), int64."""
        number = self.find_document(position)
        start, pieces, missing = position - self.count_tokens_before(number), [], count
        while missing:
            piece = self.document(number)[start : start + missing]
            pieces.append(piece.astype(np.int64))
            missing -= len(piece)
            number, start = number + 1, 0
        return np.concatenate(pieces)


class ShuffledDocuments(TokenStream):
    """Documents of one corpus in their windows' order, epoch after epoch.

    Args:
        tokens: Of all documents in file order, (num_tokens,); may be mapped from a file.
        ends: Where in `tokens` each document ends, (num_documents,), rising.
        window: Documents that are permuted among themselves.
        seed: Of the orders.
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, window: int, seed: int) -> None:
        self.tokens, self.ends, self.window, self.seed = tokens, ends, window, seed
        self.num_documents, self.num_tokens = len(ends), len(tokens)
        self._last_release = 0
        self._orders: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def count_tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        begin = epoch * self.num_tokens + self._document_start(window * self.window)
        return begin if within == 0 else begin + int(self._order(epoch, window)[1][within - 1])

    def find_document(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""
        epoch, rest = divmod(position, self.num_tokens)
        window = int(np.searchsorted(self.ends, rest, side="right")) // self.window
        within = rest - self._document_start(window * self.window)
        index = int(np.searchsorted(self._order(epoch, window)[1], within, side="right"))
        return epoch * self.num_documents + window * self.window + index

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,), a view."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        index = window * self.window + int(self._order(epoch, window)[0][within])
        return self.tokens[self._document_start(index) : int(self.ends[index])]

    def token_ranges(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in `tokens` each of documents `first` ... of the row begins and ends, both (count,), int64."""
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
        """The window's permutation, and where each document of it ends, counted from the window's beginning."""

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
        """Where in `tokens` document `number` begins."""
        return int(self.ends[number - 1]) if number else 0


@dataclass(frozen=True, eq=False)
class _MixtureBlock:
    """The documents of one block of a mixture, in order.

    Attributes:
        begin: Tokens of the row before it.
        parts: Which part each document is of, (num_documents,).
        starts: Where in that part's tokens it begins, (num_documents,), int64.
        ends: Where it ends, likewise.
        after: Tokens of the block up to its end, (num_documents,), int64.
    """

    begin: int
    stream_indices: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    cumulative_tokens: np.ndarray

    @property
    def end(self) -> int:
        """Tokens of the row up to its end."""
        return self.begin + int(self.cumulative_tokens[-1])


class MixedDocuments(TokenStream):
    """Documents of several rows, mixed block by block (`mixture_order`); each row goes on at its own pace.

    Reading on is quick: a block knows where its documents lie, and where it ends the next one begins.

    Args:
        parts: The rows.
        counts: Documents that every block takes from each.
        seed: Of the orders.
    """

    def __init__(
        self, streams: Sequence[ShuffledDocuments], block_counts: Sequence[int], seed: int
    ) -> None:
        self.streams, self.block_counts, self.seed = list(streams), list(block_counts), seed
        self.block_size = sum(block_counts)
        self._last_block = 0
        self._blocks: OrderedDict[int, _MixtureBlock] = OrderedDict()

    def count_tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""
        number, within = divmod(number, self.block_size)
        block = self._get_block(number)
        return block.begin + (int(block.cumulative_tokens[within - 1]) if within else 0)

    def find_document(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""
        if position >= self._get_block(self._last_block).end:
            self._last_block += 1
        block = self._get_block(self._last_block)
        if not block.begin <= position < block.end:  # not read on: anywhere
            self._last_block = self._find_block(position)
            block = self._get_block(self._last_block)
        index = int(np.searchsorted(block.cumulative_tokens, position - block.begin, side="right"))
        return self._last_block * self.block_size + index

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,), a view."""
        number, within = divmod(number, self.block_size)
        block = self._get_block(number)
        tokens = self.streams[int(block.stream_indices[within])].tokens
        return tokens[int(block.starts[within]) : int(block.ends[within])]

    def _find_block(self, position: int) -> int:
        """The block that a token is in."""
        above = 1
        while self._block_start(above) <= position:
            above *= 2
        return bisect_right(range(above), position, key=self._block_start) - 1

    def _block_start(self, number: int) -> int:
        if (before := self._blocks.get(number - 1)) is not None:
            return before.end
        counts = zip(self.streams, self.block_counts, strict=True)
        return sum(part.count_tokens_before(number * count) for part, count in counts)

    def _get_block(self, number: int) -> _MixtureBlock:
        def make() -> _MixtureBlock:
            parts = mixture_order(self.seed, number, self.block_counts)
            starts, ends = np.empty_like(parts), np.empty_like(parts)
            for index, (part, count) in enumerate(
                zip(self.streams, self.block_counts, strict=True)
            ):
                of_part = parts == index
                starts[of_part], ends[of_part] = part.token_ranges(number * count, count)
            return _MixtureBlock(
                self._block_start(number), parts, starts, ends, np.cumsum(ends - starts)
            )

        return _cached(self._blocks, number, make)


def _cached(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """A value made once, and kept while it is among the last few that were asked for."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > MAX_CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
