"""Documents of a source to train on, tokenized on the way, in a thread that reads a little ahead.

They come in chunks of whole windows. A chunk says where it began, as plain JSON, so that reading can begin with it
another time without tokenizing what lies before.
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
"""At least so many are tokenized together, whatever the windows."""
POLL_INTERVAL_S = 0.1


def documents_per_chunk(window: int) -> int:
    """Documents of a chunk: whole windows."""
    return window * -(-MIN_CHUNK_DOCUMENTS // window)


@dataclass(frozen=True)
class ChunkPosition:
    """Where a chunk begins.

    Attributes:
        epoch: Counts from 0.
        chunk: Its number in the epoch.
        documents_read: All of the source's documents before it, held out or not.
        place: Where the reader stands there.
        epoch_documents: Documents to train on in an epoch; None while none has been read to its end.
    """

    epoch: int
    chunk: int
    documents_read: int
    place: ReaderPosition
    epoch_documents: int | None


START_POSITION = ChunkPosition(0, 0, 0, None, None)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive documents to train on, in file order.

    Attributes:
        begin: Where it begins.
        tokens: Of all of them, (num_tokens,).
        ends: Where each ends, (num_documents,), int64.
    """

    position: ChunkPosition
    tokens: np.ndarray
    ends: np.ndarray


class TrainingDocuments(Iterator[str]):
    """What a reader hands out, but for every n-th document.

    Args:
        reader: Stands after `documents_read` documents of its source.
        validation_every: Documents n-1, 2n-1, ... of this n are left out.
        documents_read: Counted on.
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
    """Chunks from a place on, epoch after epoch, for ever.

    Raises:
        UserError: If there is no document to train on, or one cannot be read.
        RunError: If an epoch has fewer or more documents than the one before.
    """
    size, begin = documents_per_chunk(window), start
    while True:
        documents = TrainingDocuments(
            source.read(begin.place), validation_every, begin.documents_read
        )
        trained = begin.chunk * size
        while True:
            batch = concatenate_documents(
                tokenize_documents(islice(documents, size), tokenizer), tokenizer
            )
            if len(batch.lengths) == 0:
                break
            yield Chunk(begin, batch.tokens, np.cumsum(batch.lengths))
            trained += len(batch.lengths)
            begin = replace(
                begin,
                chunk=begin.chunk + 1,
                documents_read=documents.documents_read,
                place=documents.reader.position(),
            )
        documents.reader.close()
        if trained == 0:
            raise UserError(source.key, source.name, "holds no text to train on")
        if begin.epoch_documents not in (None, trained):
            counts = f"{trained:,} documents in one epoch, {begin.epoch_documents:,} in another"
            raise RunError(f"{source.name} changed while it was read: {counts}")
        begin = replace(START_POSITION, epoch=begin.epoch + 1, epoch_documents=trained)


class PrefetchIterator(Iterator[Chunk]):
    """What an iterator gives, made in a thread while others work; it ends when nobody has this object any more.

    Args:
        made: Is only used in the thread. What it raises is raised here.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._error: BaseException | None = None
        self._ready: queue.Queue[Chunk | BaseException] = queue.Queue(maxsize=1)
        stopped = threading.Event()
        weakref.finalize(self, stopped.set)
        arguments = (chunks, self._ready, stopped)
        threading.Thread(target=_fill_queue, args=arguments, name="read ahead", daemon=True).start()

    def __next__(self) -> Chunk:
        found = self._error or self._ready.get()
        if isinstance(found, BaseException):
            self._error = found  # nothing comes after it
            raise found
        return found


def _fill_queue(
    made: Iterator[Chunk],
    ready: queue.Queue[Chunk | BaseException],
    stopped: threading.Event,
) -> None:
    def hand_over(value: Chunk | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(value, timeout=POLL_INTERVAL_S)
                return

    try:
        for chunk in made:
            hand_over(chunk)
            if stopped.is_set():
                return
    except BaseException as error:
        hand_over(error)
