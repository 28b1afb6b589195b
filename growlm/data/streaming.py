"""Samples of the same endless token stream as in `token_stream.py`, from documents tokenized on the fly.

The stream is read forwards and what has been read is dropped. A state, plain JSON, says where reading has to
restart for a sample, so that nothing before it is tokenized. Without a state a sample can be read, too, from the
beginning.
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
"""Number of skipped samples between two progress reports."""


class StreamedDocuments:
    """The training documents of one source in shuffled order, epoch after epoch.

    Args:
        source: Source that is read again in every epoch.
        tokenizer: Tokenizer to encode the documents with.
        window: Number of documents that are shuffled together.
        validation_every: Every n-th document is left out.
        seed: Seed of the order.
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
        """Make document `document_index` of the stream the next one.

        Args:
            position: Position of a chunk at or before that document.
            document_index: Index of the document in the stream.
        """
        self._next, self._chunks = document_index, None
        self._order: np.ndarray | None = None
        self._chunk: Chunk | None = None
        self._positions: deque[tuple[int, ChunkPosition]] = deque(
            [(self._first_document_index(position), position)]
        )

    def next_document(self) -> np.ndarray:
        """Return the next document's tokens, (num_tokens,).

        Raises:
            UserError: If a document cannot be read.
            RunError: If the source changed, or can no longer be reached.
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
        """Return the position to `seek` from in order to reach a recently read document."""
        return max((p for p in self._positions if p[0] <= document_index), key=lambda p: p[0])[1]

    def discard_positions_before(self, document_index: int) -> None:
        """Forget positions that only documents before this one need."""
        while len(self._positions) > 1 and self._positions[1][0] <= document_index:
            self._positions.popleft()

    def _read_chunk(self) -> None:
        if self._chunks is None:
            start = self._positions[0][1]
            chunks = iter_chunks(
                self.source, self.tokenizer, self.window, self.validation_every, start
            )
            self._chunks = PrefetchIterator(chunks)
        chunk = next(self._chunks)
        self._chunk, self._begin = chunk, self._first_document_index(chunk.position)
        if self._positions[-1][0] < self._begin:
            self._positions.append((self._begin, chunk.position))
        first = chunk.position.chunk * documents_per_chunk(self.window)
        num_documents = len(chunk.ends)
        self._order = np.concatenate(
            [
                window_begin
                + window_order(
                    self.seed,
                    chunk.position.epoch,
                    (first + window_begin) // self.window,
                    min(self.window, num_documents - window_begin),
                )
                for window_begin in range(0, num_documents, self.window)
            ]
        )

    def _first_document_index(self, position: ChunkPosition) -> int:
        """Return the index in the stream of a chunk's first document."""
        before = position.epoch * (position.epoch_documents or 0)
        return before + position.chunk * documents_per_chunk(self.window)

    _chunks: PrefetchIterator | None
    _begin: int = 0


@dataclass
class _PendingDocument:
    """The unread rest of a document that samples are being cut from."""

    document: int
    offset: int
    tokens: np.ndarray


class StreamedSamples(Samples):
    """Samples of a token stream that is read forwards.

    Args:
        streams: Documents of each source.
        block_counts: Documents that every block of the mixture takes from each stream.
        sequence_length: Number of positions a model sees.
        seed: Seed of the mixture's order.
        progress: Function called with the numbers of samples done and to do while many are skipped.
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
        positions = [asdict(START_POSITION) for _ in streams]
        self._initial_state: dict[str, Any] = {
            "sample": 0,
            "document": 0,
            "offset": 0,
            "places": positions,
        }
        self._known_states = [self._initial_state]
        self._restart_from(self._initial_state)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return sample `index` of the run: (sequence_length + 1,), int64; fast only in consecutive order.

        Raises:
            UserError: If a document cannot be read.
            RunError: If a source changed, or can no longer be reached.
        """
        if index != self._next:
            self._seek(index)
        return torch.from_numpy(self._read_next_sample())

    def state_dict(self, index: int) -> dict[str, Any] | None:
        """Return the state with which reading can restart at this sample, as plain JSON.

        It is None for a sample that has already been read.
        """
        if index < self._next:
            return None
        if index > self._next:  # skip the other processes' shares of the last batch
            self._seek(index)
        pending = self._pending[0] if self._pending else self._at
        documents_before = self._count_documents_before(pending.document)
        streams = zip(self.streams, documents_before, strict=True)
        return {
            "sample": index,
            "document": pending.document,
            "offset": pending.offset,
            "places": [asdict(stream.position_before(number)) for stream, number in streams],
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Add a state of any process's samples, with the same data and settings.

        Raises:
            TypeError: If it is not a valid state (or `ValueError`).
        """
        if state is not None:
            for stream, place in zip(self.streams, state["places"], strict=True):
                stream.source.read(place["place"]).close()
            self._known_states.append(state)

    def _seek(self, index: int) -> None:
        state = max(
            (known for known in self._known_states if known["sample"] <= index),
            key=lambda known: known["sample"],
        )
        if not state["sample"] <= self._next <= index:
            self._restart_from(state)
        start = self._next
        while self._next < index:
            self._read_next_sample()
            if index - start > PROGRESS_INTERVAL and (self._next - start) % PROGRESS_INTERVAL == 0:
                self.progress(self._next - start, index - start)

    def _restart_from(self, state: dict[str, Any]) -> None:
        self._next = state["sample"]
        self._at = _PendingDocument(state["document"], state["offset"], np.zeros(0, np.uint16))
        self._document, self._skip = state["document"], state["offset"]
        self._pending: deque[_PendingDocument] = deque()
        self._available = 0
        documents_before = self._count_documents_before(self._document)
        for stream, place, number in zip(
            self.streams, state["places"], documents_before, strict=True
        ):
            stream.seek(ChunkPosition(**place), number)

    def _read_next_sample(self) -> np.ndarray:
        while self._available <= self.sequence_length:
            self._fetch_document()
        sample = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        for pending in self._pending:
            part = pending.tokens[: len(sample) - filled]
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
        """Drop `count` tokens; the next sample begins with the last token of this one."""
        self._available -= count
        while count >= len(self._pending[0].tokens):
            count -= len(self._pending.popleft().tokens)
        pending = self._pending[0]
        pending.tokens, pending.offset = pending.tokens[count:], pending.offset + count
        if self._next % PROGRESS_INTERVAL == 0:
            for stream, number in zip(
                self.streams, self._count_documents_before(pending.document), strict=True
            ):
                stream.discard_positions_before(number)

    def _index_in_block(self) -> int:
        return self._document % sum(self.block_counts)

    def _count_documents_before(self, document: int) -> list[int]:
        """Return how many of the mixture's first `document` documents come from each stream."""
        block, within = divmod(document, sum(self.block_counts))
        partial_counts = np.bincount(
            self._block_order(block)[:within], minlength=len(self.block_counts)
        )
        return [
            block * count + int(extra)
            for count, extra in zip(self.block_counts, partial_counts, strict=True)
        ]

    def _block_order(self, block: int) -> np.ndarray:
        if self._order is None or self._order[0] != block:
            self._order = block, mixture_order(self.seed, block, self.block_counts)
        return self._order[1]
