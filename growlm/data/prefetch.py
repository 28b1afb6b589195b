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

from growlm.data.sources.document_sources import Place, Reader, Source
from growlm.data.tokenization.parallel_tokenization import join, tokenize
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.runtime.errors import RunError, UserError

CHUNK_DOCUMENTS = 1024
"""At least so many are tokenized together, whatever the windows."""
POLL_S = 0.1


def chunk_documents(window: int) -> int:
    """Documents of a chunk: whole windows."""
    return window * -(-CHUNK_DOCUMENTS // window)


@dataclass(frozen=True)
class ChunkPlace:
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
    place: Place
    epoch_documents: int | None


BEGINNING = ChunkPlace(0, 0, 0, None, None)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive documents to train on, in file order.

    Attributes:
        begin: Where it begins.
        tokens: Of all of them, (num_tokens,).
        ends: Where each ends, (num_documents,), int64.
    """

    begin: ChunkPlace
    tokens: np.ndarray
    ends: np.ndarray


class TrainingDocuments(Iterator[str]):
    """What a reader hands out, but for every n-th document.

    Args:
        reader: Stands after `documents_read` documents of its source.
        validation_every: Documents n-1, 2n-1, ... of this n are left out.
        documents_read: Counted on.
    """

    def __init__(self, reader: Reader, validation_every: int, documents_read: int) -> None:
        self.reader, self.validation_every = reader, validation_every
        self.documents_read = documents_read

    def __next__(self) -> str:
        while True:
            text = next(self.reader)
            self.documents_read += 1
            if self.documents_read % self.validation_every:
                return text


def chunks(
    source: Source, tokenizer: Tokenizer, window: int, validation_every: int, start: ChunkPlace
) -> Iterator[Chunk]:
    """Chunks from a place on, epoch after epoch, for ever.

    Raises:
        UserError: If there is no document to train on, or one cannot be read.
        RunError: If an epoch has fewer or more documents than the one before.
    """
    size, begin = chunk_documents(window), start
    while True:
        documents = TrainingDocuments(
            source.read(begin.place), validation_every, begin.documents_read
        )
        trained = begin.chunk * size
        while True:
            batch = join(tokenize(islice(documents, size), tokenizer), tokenizer)
            if len(batch.lengths) == 0:
                break
            yield Chunk(begin, batch.tokens, np.cumsum(batch.lengths))
            trained += len(batch.lengths)
            begin = replace(
                begin,
                chunk=begin.chunk + 1,
                documents_read=documents.documents_read,
                place=documents.reader.place(),
            )
        documents.reader.close()
        if trained == 0:
            raise UserError(source.key, source.name, "holds no text to train on")
        if begin.epoch_documents not in (None, trained):
            counts = f"{trained:,} documents in one epoch, {begin.epoch_documents:,} in another"
            raise RunError(f"{source.name} changed while it was read: {counts}")
        begin = replace(BEGINNING, epoch=begin.epoch + 1, epoch_documents=trained)


class ReadAhead(Iterator[Chunk]):
    """What an iterator gives, made in a thread while others work; it ends when nobody has this object any more.

    Args:
        made: Is only used in the thread. What it raises is raised here.
    """

    def __init__(self, made: Iterator[Chunk]) -> None:
        self._error: BaseException | None = None
        self._ready: queue.Queue[Chunk | BaseException] = queue.Queue(maxsize=1)
        stopped = threading.Event()
        weakref.finalize(self, stopped.set)
        arguments = (made, self._ready, stopped)
        threading.Thread(target=_fill, args=arguments, name="read ahead", daemon=True).start()

    def __next__(self) -> Chunk:
        found = self._error or self._ready.get()
        if isinstance(found, BaseException):
            self._error = found  # nothing comes after it
            raise found
        return found


def _fill(
    made: Iterator[Chunk],
    ready: queue.Queue[Chunk | BaseException],
    stopped: threading.Event,
) -> None:
    def hand_over(value: Chunk | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(value, timeout=POLL_S)
                return

    try:
        for chunk in made:
            hand_over(chunk)
            if stopped.is_set():
                return
    except BaseException as error:
        hand_over(error)
