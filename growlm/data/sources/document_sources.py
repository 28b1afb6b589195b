"""Sources of documents that can be read from the beginning, or from any earlier position.

A source has no state. Reading it gives a `DocumentReader`, which yields documents in an order that never
changes. The reader reports the position of the next document as plain JSON, and another reader of the same
source can continue from there.
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
"""The position of a reader, as plain JSON."""


class DocumentReader(Iterator[str], ABC):
    """An iterator over documents in order; documents of only white space are skipped."""

    @abstractmethod
    def position(self) -> ReaderPosition:
        """Return the position of the next document."""

    @property
    def fraction_read(self) -> float | None:
        """Fraction of the source that has been read, from 0 to 1; None if unknown."""
        return None

    def close(self) -> None:
        """Close open files."""


class DocumentSource(ABC):
    """Documents in a fixed order, read with `read()` from the start or from a saved position.

    Attributes:
        key: Setting that describes the source, for error messages: `data` or `data.sources.NAME`.
        name: Name or path of the documents, for messages.
        libraries: Packages that read the documents; another version might read them differently.
    """

    key: str
    name: str
    libraries: tuple[str, ...] = ()

    @abstractmethod
    def read(self, position: ReaderPosition = None) -> DocumentReader:
        """Read from the beginning, or from another reader's position.

        Raises:
            UserError: If something cannot be read, at the call or when it is reached.
        """

    @abstractmethod
    def identity(self) -> Any:
        """Return what identifies these documents without reading them, as plain JSON."""

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Return what identifies these documents by their files' contents, whatever the files' names and times.

        Args:
            hash_file: Function that returns a file's checksum.
        """
        return self.identity()

    def stat_signatures(self) -> dict[Path, Any]:
        """Return, for each file that might change while it is read, a signature that would show it."""
        return {}


class EmbeddedStories(DocumentSource):
    """The first `count` stories of the embedded corpus.

    A smaller count gives a prefix of a larger one.

    Args:
        seed: Seed of the stories.
        count: Number of stories.
        key: Setting that describes the source, for error messages.
    """

    def __init__(self, seed: int, count: int, key: str = "data") -> None:
        if count < 1:
            raise UserError(f"{key}.documents", count, "must be at least 1")
        self.seed, self.count, self.key = seed, count, key
        self.name = "the embedded stories"

    def read(self, position: ReaderPosition = None) -> StoryReader:
        """Read the stories, from the first one or from index `position` on."""
        return StoryReader(self.seed, self.count, position or 0)

    def identity(self) -> Any:
        """Return the version of the grammar, and which of its stories are read."""
        return ["embedded", CORPUS_VERSION, self.seed, self.count]


def embedded_documents(seed: int, count: int) -> Iterator[str]:
    """Return an iterator over the first `count` stories of the embedded corpus."""
    return EmbeddedStories(seed, count).read()


class StoryReader(DocumentReader):
    """A reader of the stories with indices `first` ... `count - 1`."""

    def __init__(self, seed: int, count: int, first: int) -> None:
        self.seed, self.count, self.next_index = seed, count, index(first)

    def __next__(self) -> str:
        if self.next_index >= self.count:
            raise StopIteration
        self.next_index += 1
        return generate_story(self.seed, self.next_index - 1)

    def position(self) -> ReaderPosition:
        """Return the index of the next story."""
        return self.next_index

    @property
    def fraction_read(self) -> float:
        """Fraction of the stories that has been read."""
        return self.next_index / self.count


class TextFiles(DocumentSource):
    """Text files of the user: plain text, JSON lines, CSV or parquet.

    Args:
        path: File, folder or glob pattern (see `find_text_files`).
        column: Column of a table, or key of a JSON object, that holds the text.
        sample_by: Unit of plain text that is one document: `line`, `paragraph` or the whole `document`.
        key: Setting that describes the source, for error messages.

    Raises:
        UserError: If the path has no readable text, `sample_by` is unknown, or the first document of a file is
            invalid (one per kind of file is read as a check).
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
        """Read from the first file on, or from position `[file, document in it]`."""
        return TextFilesReader(self, position or (0, 0))

    def identity(self) -> Any:
        """Return the files' names, sizes and modification times, and how they are read."""
        file_identities = [list(file.identity()) for file in self.files]
        return ["text", self.column, self.sample_by, file_identities]

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Return the files' kinds and checksums, and how they are read."""
        files = [[file.kind, file.compression, hash_file(file.path)] for file in self.files]
        return ["text", self.column, self.sample_by, files]

    def stat_signatures(self) -> dict[Path, Any]:
        """Return each file's size, modification time and inode; None for a missing file."""
        return {file.path: _stat_signature_or_none(file) for file in self.files}

    def open_documents(self, file: TextFile) -> FileDocuments:
        """Open the documents of one file."""
        return FileDocuments(file, self.column, self.sample_by, f"{self.key}.path")

    def _check_columns(self) -> None:
        """Read one document of each kind of file, to report a missing column before tokenizing for an hour."""
        first_by_kind = {file.kind: file for file in reversed(self.files) if file.kind != "text"}
        for file in first_by_kind.values():
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
    """A reader of the documents of several files, one file after another."""

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
        """Return the index of the file, and of the next document in it."""
        return [self.file_index, self.document_index]

    @property
    def fraction_read(self) -> float:
        """Fraction of the files' bytes that has been read."""
        within = self._open.fraction_read * self._sizes[self.file_index] if self._open else 0
        return min(1.0, (self._bytes_before[self.file_index] + within) / self._bytes_before[-1])

    def close(self) -> None:
        """Close the open file."""
        self._documents.close()

    def _read(self) -> Generator[str]:
        first = self.file_index
        for index_of_file in range(first, len(self.source.files)):
            skipped = self.document_index if index_of_file == first else 0
            self.file_index, self.document_index = index_of_file, skipped
            self._open = self.source.open_documents(self.source.files[self.file_index])
            try:
                for text in islice(self._open, skipped, None):
                    self.document_index += 1
                    yield text
            finally:
                self._open.close()
