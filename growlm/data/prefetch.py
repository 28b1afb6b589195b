"""Training documents of a source, tokenized by a background thread that reads slightly ahead.

They come in chunks of whole shuffle windows. A chunk knows its position, as plain JSON, so that reading can
restart there without tokenizing anything before it.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from growlm.data.sources.document_sources import DocumentReader, DocumentSource, ReaderPosition
from growlm.data.tokenization.parallel_tokenization import concatenate_documents, tokenize_documents
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.runtime.errors import RunError, UserError

MIN_CHUNK_DOCUMENTS = 1024
"""Minimum number of documents tokenized together, whatever the window size."""
POLL_INTERVAL_S = 0.1


def documents_per_chunk(window: int) -> int:
    """Return the number of documents in a chunk, a multiple of the window size."""
    return window * -(-MIN_CHUNK_DOCUMENTS // window)


@dataclass(frozen=True)
class ChunkPosition:
    """The position where a chunk begins.

    Attributes:
        epoch: Epoch, from 0.
        chunk: Index of the chunk in the epoch.
        documents_read: Number of the source's documents before it in the epoch, validation documents included.
        place: Position of the source's reader there.
        epoch_documents: Number of training documents in an epoch; None until one has been read to its end.
    """

    epoch: int
    chunk: int
    documents_read: int
    place: ReaderPosition
    epoch_documents: int | None


START_POSITION = ChunkPosition(0, 0, 0, None, None)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive training documents, in file order.

    Attributes:
        position: Position where the chunk begins.
        tokens: Token ids of all its documents, (num_tokens,).
        ends: End of each document in `tokens`, (num_documents,), int64.
    """

    position: ChunkPosition
    tokens: np.ndarray
    ends: np.ndarray


class TrainingDocuments(Iterator[str]):
    """An iterator over a reader's documents without those of the validation split.

    Args:
        reader: Reader that has read `documents_read` documents of its source.
        validation_every: Every n-th document (n-1, 2n-1, ...) is skipped.
        documents_read: Number of documents already read; the count continues from it.
    """

    def __init__(self, reader: DocumentReader, validation_every: int, documents_read: int) -> None:
        self.reader, self.validation_every = reader, validation_every
        self.documents_read = documents_read

    def __next__(self) -> str:
        while True:
            text = next(self.reader)
            self.documents_read += 1
            if self.documents_read % self.validation_every:
                return text


def iter_chunks(
    source: DocumentSource,
    tokenizer: Tokenizer,
    window: int,
    validation_every: int,
    start: ChunkPosition,
) -> Iterator[Chunk]:
    """Yield chunks from a position on, epoch after epoch, without end.

    Raises:
        UserError: If there is no document to train on, or one cannot be read.
        RunError: If two epochs have different numbers of documents.
    """
    chunk_size, position = documents_per_chunk(window), start
    while True:
        documents = TrainingDocuments(
            source.read(position.place), validation_every, position.documents_read
        )
        num_trained = position.chunk * chunk_size
        try:
            while True:
                batch = concatenate_documents(
                    tokenize_documents(islice(documents, chunk_size), tokenizer), tokenizer
                )
                if len(batch.lengths) == 0:
                    break
                yield Chunk(position, batch.tokens, np.cumsum(batch.lengths))
                num_trained += len(batch.lengths)
                position = replace(
                    position,
                    chunk=position.chunk + 1,
                    documents_read=documents.documents_read,
                    place=documents.reader.position(),
                )
        finally:  # also where nobody reads on
            documents.reader.close()
        if num_trained == 0:
            raise UserError(source.key, source.name, "holds no text to train on")
        if position.epoch_documents not in (None, num_trained):
            counts = (
                f"{num_trained:,} documents in one epoch, {position.epoch_documents:,} in another"
            )
            raise RunError(f"{source.name} changed while it was read: {counts}")
        position = replace(START_POSITION, epoch=position.epoch + 1, epoch_documents=num_trained)


class PrefetchIterator(Iterator[Chunk]):
    """An iterator over chunks that a background thread produces ahead of time.

    The thread ends when this object is garbage-collected.

    Args:
        chunks: Iterator to read in the thread; its exceptions are raised here.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._error: BaseException | None = None
        self._ready: queue.Queue[Chunk | BaseException] = queue.Queue(maxsize=1)
        stopped = threading.Event()
        weakref.finalize(self, stopped.set)
        arguments = (chunks, self._ready, stopped)
        threading.Thread(target=_fill_queue, args=arguments, name="read ahead", daemon=True).start()

    def __next__(self) -> Chunk:
        item = self._error or self._ready.get()
        if isinstance(item, BaseException):
            self._error = item  # the thread has ended
            raise item
        return item


def _fill_queue(
    chunks: Iterator[Chunk],
    ready: queue.Queue[Chunk | BaseException],
    stopped: threading.Event,
) -> None:
    def put(value: Chunk | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(value, timeout=POLL_INTERVAL_S)
                return

    try:
        for chunk in chunks:
            put(chunk)
            if stopped.is_set():
                return
    except BaseException as error:
        put(error)
