"""One endless row of tokens out of documents on disk: any place of it by arithmetic, none of it in memory.

The documents of an epoch in their shuffled order, those of the next epoch after them, and so on. What a window
holds does not depend on its order, so the tokens before it are known without looking at any permutation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from growlm.data.mapped import let_go_of_pages
from growlm.data.shuffling import mixture_order, window_order

KEPT = 4
"""Permutations in memory: reading goes forward, but a mixture may look at the beginning of a window again."""
RELEASED_TOGETHER = 10_000
"""Documents after which what was read is let go of."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Row(ABC):
    """Documents for ever, each with its tokens."""

    @abstractmethod
    def tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""

    @abstractmethod
    def find(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""

    @abstractmethod
    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,)."""

    def read(self, position: int, count: int) -> np.ndarray:
        """Tokens `position` ... `position + count - 1` of the row, (count,), int64."""
        number = self.find(position)
        start, pieces, missing = position - self.tokens_before(number), [], count
        while missing:
            piece = self.document(number)[start : start + missing]
            pieces.append(piece.astype(np.int64))
            missing -= len(piece)
            number, start = number + 1, 0
        return np.concatenate(pieces)


class ShuffledDocuments(Row):
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
        self._read_in = 0
        self._orders: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        begin = epoch * self.num_tokens + self._end(window * self.window)
        return begin if within == 0 else begin + int(self._order(epoch, window)[1][within - 1])

    def find(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""
        epoch, rest = divmod(position, self.num_tokens)
        window = int(np.searchsorted(self.ends, rest, side="right")) // self.window
        within = rest - self._end(window * self.window)
        index = int(np.searchsorted(self._order(epoch, window)[1], within, side="right"))
        return epoch * self.num_documents + window * self.window + index

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,), a view."""
        epoch, rest = divmod(number, self.num_documents)
        window, within = divmod(rest, self.window)
        index = window * self.window + int(self._order(epoch, window)[0][within])
        return self.tokens[self._end(index) : int(self.ends[index])]

    def lengths(self, first: int, count: int) -> np.ndarray:
        """Tokens of each of documents `first` ... of the row, (count,), int64."""
        parts = []
        while count:
            epoch, rest = divmod(first, self.num_documents)
            window, within = divmod(rest, self.window)
            part = np.diff(self._order(epoch, window)[1], prepend=0)[within : within + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _order(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The window's permutation, and where each document of it ends, counted from the window's beginning."""

        def make() -> tuple[np.ndarray, np.ndarray]:
            first = window * self.window
            if first // RELEASED_TOGETHER != self._read_in:
                self._read_in = first // RELEASED_TOGETHER
                let_go_of_pages(self.tokens)
                let_go_of_pages(self.ends)
            ends = self.ends[first : first + self.window].astype(np.int64)
            lengths = np.diff(ends, prepend=self._end(first))
            order = window_order(self.seed, epoch, window, len(lengths))
            return order, np.cumsum(lengths[order])

        return _kept(self._orders, (epoch, window), make)

    def _end(self, number: int) -> int:
        """Where in `tokens` document `number` begins."""
        return int(self.ends[number - 1]) if number else 0


class MixedDocuments(Row):
    """Documents of several rows, mixed block by block (`mixture_order`); each row goes on at its own pace.

    Args:
        parts: The rows.
        counts: Documents that every block takes from each.
        seed: Of the orders.
    """

    def __init__(
        self, parts: Sequence[ShuffledDocuments], counts: Sequence[int], seed: int
    ) -> None:
        self.parts, self.counts, self.seed = list(parts), list(counts), seed
        self.block = sum(counts)
        self._blocks: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()

    def tokens_before(self, number: int) -> int:
        """Tokens of documents 0 ... number-1 of the row."""
        block, within = divmod(number, self.block)
        begin = self._begin(block)
        return begin if within == 0 else begin + int(self._block(block)[2][within - 1])

    def find(self, position: int) -> int:
        """Number of the document that token `position` of the row is in."""
        above = 1
        while self._begin(above) <= position:
            above *= 2
        block = bisect_right(range(above), position, key=self._begin) - 1
        within = position - self._begin(block)
        index = int(np.searchsorted(self._block(block)[2], within, side="right"))
        return block * self.block + index

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, (num_tokens,), a view."""
        block, within = divmod(number, self.block)
        sources, numbers, _ = self._block(block)
        return self.parts[int(sources[within])].document(int(numbers[within]))

    def _begin(self, block: int) -> int:
        counts = zip(self.parts, self.counts, strict=True)
        return sum(part.tokens_before(block * count) for part, count in counts)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each of its documents: the part, its number in the part's row, and where it ends in the block."""

        def make() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            sources = mixture_order(self.seed, block, self.counts)
            numbers, lengths = np.empty_like(sources), np.empty_like(sources)
            for index, (part, count) in enumerate(zip(self.parts, self.counts, strict=True)):
                numbers[sources == index] = np.arange(block * count, (block + 1) * count)
                lengths[sources == index] = part.lengths(block * count, count)
            return sources, numbers, np.cumsum(lengths)

        return _kept(self._blocks, block, make)


def _kept(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """A value made once, and kept while it is among the last few that were asked for."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > KEPT:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
