"""The same endless row of tokens as `rows.py` makes, out of documents that are tokenized on the way.

Read forwards. What has been read is forgotten; a mark, plain JSON, says where to begin reading again so that a
sample comes without tokenizing what lies before it. Without a mark it comes too, after reading from the beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from growlm.data.packing import Samples
from growlm.data.prefetch import (
    START_POSITION,
    Chunk,
    ChunkPosition,
    PrefetchIterator,
    documents_per_chunk,
    iter_chunks,
)
from growlm.data.shuffling import mixture_order, window_order
from growlm.data.sources.document_sources import DocumentSource
from growlm.data.tokenization.tokenizer import Tokenizer

PROGRESS_INTERVAL = 1000
"""Samples after which reading up to another one is told of."""


class StreamedDocuments:
    """Documents of one source in their windows' order, epoch after epoch, one after another.

    Args:
        source: Read again in every epoch.
        tokenizer: What encodes them.
        window: Documents that are permuted among themselves.
        validation_every: Every n-th document is left out.
        seed: Of the orders.
    """

    def __init__(
        self,
        source: DocumentSource,
        tokenizer: Tokenizer,
        window: int,
        validation_every: int,
        seed: int,
    ) -> None:
        self.source, self.tokenizer = source, tokenizer
        self.window, self.validation_every, self.seed = window, validation_every, seed
        self.seek(START_POSITION, 0)

    def seek(self, position: ChunkPosition, document_index: int) -> None:
        """Have document `number` of the row come next, reading from a chunk at or before it."""
        self._next, self._chunks = document_index, None
        self._order: np.ndarray | None = None
        self._chunk: Chunk | None = None
        self._positions: deque[tuple[int, ChunkPosition]] = deque(
            [(self._first_document_index(position), position)]
        )

    def next_document(self) -> np.ndarray:
        """The next document's tokens, (num_tokens,).

        Raises:
            UserError: If a document cannot be read.
            RunError: If the source changed, or cannot be reached any more.
        """
        while self._chunk is None or self._next >= self._begin + len(self._chunk.ends):
            self._read_chunk()
        assert self._chunk is not None
        assert self._order is not None
        index = int(self._order[self._next - self._begin])
        self._next += 1
        start = int(self._chunk.ends[index - 1]) if index else 0
        return self._chunk.tokens[start : int(self._chunk.ends[index])]

    def position_before(self, document_index: int) -> ChunkPosition:
        """Where to `start` to reach a document that was not handed out long ago."""
        return max((p for p in self._positions if p[0] <= document_index), key=lambda p: p[0])[1]

    def discard_positions_before(self, document_index: int) -> None:
        """Nobody will ask for places before this document's."""
        while len(self._positions) > 1 and self._positions[1][0] <= document_index:
            self._positions.popleft()

    def _read_chunk(self) -> None:
        if self._chunks is None:
            start = self._positions[0][1]
            made = iter_chunks(
                self.source, self.tokenizer, self.window, self.validation_every, start
            )
            self._chunks = PrefetchIterator(made)
        chunk = next(self._chunks)
        self._chunk, self._begin = chunk, self._first_document_index(chunk.position)
        if self._positions[-1][0] < self._begin:
            self._positions.append((self._begin, chunk.position))
        first = chunk.position.chunk * documents_per_chunk(self.window)
        num_documents = len(chunk.ends)
        self._order = np.concatenate(
            [
                begin
                + window_order(
                    self.seed,
                    chunk.position.epoch,
                    (first + begin) // self.window,
                    min(self.window, num_documents - begin),
                )
                for begin in range(0, num_documents, self.window)
            ]
        )

    def _first_document_index(self, place: ChunkPosition) -> int:
        """Number in the row of a chunk's first document."""
        before = place.epoch * (place.epoch_documents or 0)
        return before + place.chunk * documents_per_chunk(self.window)

    _chunks: PrefetchIterator | None
    _begin: int = 0


@dataclass
class _PendingDocument:
    """What is left of a document that samples are being made of."""

    document: int
    offset: int
    tokens: np.ndarray


class StreamedSamples(Samples):
    """Samples of a row that is read forwards.

    Args:
        streams: The sources' documents.
        counts: Documents that every block of the mixture takes from each; one number for one stream.
        sequence_length: Number of positions a model sees.
        seed: Of the mixture's order.
        progress: Called with the samples done and to do, where many must be read to reach another one.
    """

    def __init__(
        self,
        streams: Sequence[StreamedDocuments],
        block_counts: Sequence[int],
        sequence_length: int,
        seed: int,
        progress: Callable[[int, int], object],
    ) -> None:
        self.streams, self.block_counts = list(streams), list(block_counts)
        self.sequence_length, self.seed, self.progress = sequence_length, seed, progress
        self._order: tuple[int, np.ndarray] | None = None
        beginnings = [asdict(START_POSITION) for _ in streams]
        self._initial_state: dict[str, Any] = {
            "sample": 0,
            "document": 0,
            "offset": 0,
            "places": beginnings,
        }
        self._known_states = [self._initial_state]
        self._restart_from(self._initial_state)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sample `index` of the run: (sequence_length + 1,), int64. Quick for the one after the last one only.

        Raises:
            UserError: If a document cannot be read.
            RunError: If a source changed, or cannot be reached any more.
        """
        if index != self._next:
            self._seek(index)
        return torch.from_numpy(self._read_next_sample())

    def state_dict(self, index: int) -> dict[str, Any] | None:
        """What `recall` takes to begin again with this sample: plain JSON. None for one before the next one."""
        if index < self._next:
            return None
        if index > self._next:  # the other processes' parts of the last batch
            self._seek(index)
        piece = self._pending[0] if self._pending else self._at
        before = self._count_documents_before(piece.document)
        streams = zip(self.streams, before, strict=True)
        return {
            "sample": index,
            "document": piece.document,
            "offset": piece.offset,
            "places": [asdict(stream.position_before(number)) for stream, number in streams],
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Know a mark, of this or of another process, of the same data and settings.

        Raises:
            TypeError: Or a `ValueError`, if it is none.
        """
        if state is not None:
            for stream, place in zip(self.streams, state["places"], strict=True):
                stream.source.read(place["place"]).close()
            self._known_states.append(state)

    def _seek(self, index: int) -> None:
        mark = max(
            (m for m in self._known_states if m["sample"] <= index), key=lambda m: m["sample"]
        )
        if not mark["sample"] <= self._next <= index:
            self._restart_from(mark)
        first = self._next
        while self._next < index:
            self._read_next_sample()
            if index - first > PROGRESS_INTERVAL and (self._next - first) % PROGRESS_INTERVAL == 0:
                self.progress(self._next - first, index - first)

    def _restart_from(self, mark: dict[str, Any]) -> None:
        self._next = mark["sample"]
        self._at = _PendingDocument(mark["document"], mark["offset"], np.zeros(0, np.uint16))
        self._document, self._skip = mark["document"], mark["offset"]
        self._pending: deque[_PendingDocument] = deque()
        self._available = 0
        before = self._count_documents_before(self._document)
        for stream, place, number in zip(self.streams, mark["places"], before, strict=True):
            stream.seek(ChunkPosition(**place), number)

    def _read_next_sample(self) -> np.ndarray:
        """The next sample."""
        while self._available <= self.sequence_length:
            self._fetch_document()
        sample = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        for piece in self._pending:
            part = piece.tokens[: len(sample) - filled]
            sample[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(sample):
                break
        self._consume(self.sequence_length)
        self._next += 1
        return sample

    def _fetch_document(self) -> None:
        source = int(
            self._block_order(self._document // sum(self.block_counts))[self._index_in_block()]
        )
        tokens = self.streams[source].next_document()[self._skip :]
        self._pending.append(_PendingDocument(self._document, self._skip, tokens))
        self._available += len(tokens)
        self._document, self._skip = self._document + 1, 0

    def _consume(self, count: int) -> None:
        """Of so many tokens; the next sample begins with the last one of this."""
        self._available -= count
        while count >= len(self._pending[0].tokens):
            count -= len(self._pending.popleft().tokens)
        piece = self._pending[0]
        piece.tokens, piece.offset = piece.tokens[count:], piece.offset + count
        if self._next % PROGRESS_INTERVAL == 0:
            for stream, number in zip(
                self.streams, self._count_documents_before(piece.document), strict=True
            ):
                stream.discard_positions_before(number)

    def _index_in_block(self) -> int:
        return self._document % sum(self.block_counts)

    def _count_documents_before(self, document: int) -> list[int]:
        """How many of the row's first documents are of each stream."""
        block, within = divmod(document, sum(self.block_counts))
        part = np.bincount(self._block_order(block)[:within], minlength=len(self.block_counts))
        return [
            block * count + int(more) for count, more in zip(self.block_counts, part, strict=True)
        ]

    def _block_order(self, block: int) -> np.ndarray:
        if self._order is None or self._order[0] != block:
            self._order = block, mixture_order(self.seed, block, self.block_counts)
        return self._order[1]
