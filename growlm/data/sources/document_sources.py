"""Where documents come from: something that can be read from the beginning, or on from a place in it.

A source has no state. Reading it gives a `Reader`, which hands out documents in an order that never changes and
says, as plain JSON, where the next one is; another reader of the same source goes on from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import accumulate, islice
from operator import index
from pathlib import Path
from typing import Any

from growlm.data.sources.file_readers import SAMPLE_BY_CHOICES, FileDocuments
from growlm.data.sources.text_files import TextFile, find_text_files
from growlm.data.synthetic.stories import CORPUS_VERSION, generate_story
from growlm.runtime.errors import UserError
from growlm.storage.file_digests import get_stat_signature

ReaderPosition = Any
"""Where a reader stands, as plain JSON."""


class DocumentReader(Iterator[str], ABC):
    """Documents in order; none is only white space."""

    @abstractmethod
    def position(self) -> ReaderPosition:
        """Where the next document is."""

    @property
    def fraction_read(self) -> float | None:
        """How much of the source has been read, between 0 and 1; None where that is not known."""
        return None

    def close(self) -> None:
        """Let go of what is open."""


class DocumentSource(ABC):
    """Documents that can be read, again and again.

    Attributes:
        key: What the user calls it, for messages: `data`, or `data.sources.NAME`.
        name: Which documents these are, in a word or a path.
        libraries: Packages that read them, another version of which may read otherwise.
    """

    key: str
    name: str
    libraries: tuple[str, ...] = ()

    @abstractmethod
    def read(self, position: ReaderPosition = None) -> DocumentReader:
        """Read from the beginning, or from where another reader stood.

        Raises:
            UserError: If something cannot be read, at the call or on reaching it.
        """

    @abstractmethod
    def identity(self) -> Any:
        """What tells these documents from others without reading them, as plain JSON."""

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Likewise, but by what files hold: the same under another name and on another day.

        Args:
            digest: Gives a file's checksum.
        """
        return self.identity()

    def stat_signatures(self) -> dict[Path, Any]:
        """Of each file that may change while it is read, what tells that it did."""
        return {}


class EmbeddedStories(DocumentSource):
    """The first `count` stories of the embedded corpus; fewer are the beginning of more.

    Args:
        seed: Which stories.
        count: How many.
        key: What the user calls the source.
    """

    def __init__(self, seed: int, count: int, key: str = "data") -> None:
        if count < 1:
            raise UserError(f"{key}.documents", count, "must be at least 1")
        self.seed, self.count, self.key = seed, count, key
        self.name = "the embedded stories"

    def read(self, position: ReaderPosition = None) -> StoryReader:
        """Tell them, from the first or from story `place` on."""
        return StoryReader(self.seed, self.count, position or 0)

    def identity(self) -> Any:
        """Return the version of the grammar, and which of its stories are read."""
        return ["embedded", CORPUS_VERSION, self.seed, self.count]


def embedded_documents(seed: int, count: int) -> Iterator[str]:
    """The first `count` stories of the embedded corpus."""
    return EmbeddedStories(seed, count).read()


class StoryReader(DocumentReader):
    """Tells stories `first`, `first + 1`, ... below `count`."""

    def __init__(self, seed: int, count: int, first: int) -> None:
        self.seed, self.count, self.next_index = seed, count, index(first)

    def __next__(self) -> str:
        if self.next_index >= self.count:
            raise StopIteration
        self.next_index += 1
        return generate_story(self.seed, self.next_index - 1)

    def position(self) -> ReaderPosition:
        """The next story's number."""
        return self.next_index

    @property
    def fraction_read(self) -> float:
        """Told of all."""
        return self.next_index / self.count


class TextFiles(DocumentSource):
    """Files of the user's: plain text, JSON lines, CSV, parquet.

    Args:
        path: A file, a folder or a glob pattern (`find_text_files`).
        column: Of tables and JSON objects: where the text is.
        sample_by: What a document of plain text is: a `line`, a `paragraph` or a whole `document`.
        key: What the user calls the source.

    Raises:
        UserError: For a path without readable text, an unknown `sample_by`, or where the first document, read to
            see, cannot be.
    """

    def __init__(self, path: str, column: str, sample_by: str, key: str = "data") -> None:
        if sample_by not in SAMPLE_BY_CHOICES:
            raise UserError(
                f"{key}.sample_by", sample_by, f"must be one of {', '.join(SAMPLE_BY_CHOICES)}"
            )
        self.name, self.column, self.sample_by, self.key = path, column, sample_by, key
        self.files = find_text_files(path, f"{key}.path")
        if any(file.kind == "parquet" or file.compression == ".zst" for file in self.files):
            self.libraries = ("pyarrow",)
        self._check_columns()

    def read(self, position: ReaderPosition = None) -> TextFilesReader:
        """From the first file on, or from `[file, document of it]`."""
        return TextFilesReader(self, position or (0, 0))

    def identity(self) -> Any:
        """Names, sizes and times of change, and how the files are read."""
        stamps = [list(file.identity()) for file in self.files]
        return ["text", self.column, self.sample_by, stamps]

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Kinds and checksums, and how the files are read."""
        files = [[file.kind, file.compression, hash_file(file.path)] for file in self.files]
        return ["text", self.column, self.sample_by, files]

    def stat_signatures(self) -> dict[Path, Any]:
        """Sizes, times of change and inodes; None for what has gone."""
        return {file.path: _stat_signature_or_none(file) for file in self.files}

    def open_documents(self, file: TextFile) -> FileDocuments:
        """Those of one file."""
        return FileDocuments(file, self.column, self.sample_by, f"{self.key}.path")

    def _check_columns(self) -> None:
        """A missing column is better known before an hour of tokenising; one file of each kind is looked into."""
        firsts = {file.kind: file for file in reversed(self.files) if file.kind != "text"}
        for file in firsts.values():
            documents = self.open_documents(file)
            next(documents, None)
            documents.close()


def _stat_signature_or_none(file: TextFile) -> Any:
    try:
        return get_stat_signature(file.path.stat())
    except OSError:
        return None


def _file_size(file: TextFile, key: str) -> int:
    try:
        return file.path.stat().st_size
    except OSError as error:
        raise UserError(f"{key}.path", file.path, f"cannot be read: {error.strerror}") from None


class TextFilesReader(DocumentReader):
    """Documents of files, one file after another."""

    def __init__(self, source: TextFiles, position: Sequence[int]) -> None:
        self.source = source
        self.file_index, self.document_index = map(index, position)
        self._open: FileDocuments | None = None
        self._sizes = [_file_size(file, source.key) for file in source.files]
        self._bytes_before = [0, *accumulate(self._sizes)]
        self._documents = self._read()

    def __next__(self) -> str:
        return next(self._documents)

    def position(self) -> ReaderPosition:
        """The file's number, and the next document's in it."""
        return [self.file_index, self.document_index]

    @property
    def fraction_read(self) -> float:
        """Of the files' bytes."""
        within = self._open.fraction_read * self._sizes[self.file_index] if self._open else 0
        return min(1.0, (self._bytes_before[self.file_index] + within) / self._bytes_before[-1])

    def close(self) -> None:
        """Close the file."""
        self._documents.close()

    def _read(self) -> Generator[str]:
        first = self.file_index
        for number in range(first, len(self.source.files)):
            skipped = self.document_index if number == first else 0
            self.file_index, self.document_index = number, skipped
            self._open = self.source.open_documents(self.source.files[self.file_index])
            try:
                for text in islice(self._open, skipped, None):
                    self.document_index += 1
                    yield text
            finally:
                self._open.close()
