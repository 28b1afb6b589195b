"""Sources of documents that can be read from the beginning, or from any earlier position.

A source has no state. Reading it gives a `DocumentReader`, which yields documents in an order that never
changes. The reader reports the position of the next document as plain JSON, and another reader of the same
source can continue from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from operator import index
from pathlib import Path
from typing import Any

from growlm.data.sources.file_readers import DELIMITERS, SAMPLE_BY_CHOICES, FileDocuments
from growlm.data.sources.row_values import RowFilter
from growlm.data.sources.text_files import DELIMITER_NAMES, TextFile, search_text_files
from growlm.data.synthetic.stories import CORPUS_VERSION, generate_story
from growlm.runtime.errors import UserError
from growlm.storage.file_digests import get_stat_signature

ReaderPosition = Any
"""The position of a reader, as plain JSON."""
DEFAULTS = {"column": "text", "sample_by": "paragraph"}
"""Settings that only some kinds of files use, with the values that ask for nothing."""
PARAGRAPH_RULE = "parted by lines of white space"
"""Part of the identity of text read by paragraphs, since lines of white space part them as empty ones do."""


class DocumentReader(Iterator[str], ABC):
    """An iterator over documents in order; documents of only white space are skipped."""

    @abstractmethod
    def position(self) -> ReaderPosition:
        """Return the position of the next document."""

    @property
    def fraction_read(self) -> float | None:
        """Fraction of the source that has been read, from 0 to 1; None if unknown."""
        return None

    @property
    def selection(self) -> dict[str, int]:
        """Numbers of documents that the settings have left out or cut so far, by what did."""
        return {}

    def close(self) -> None:
        """Close open files."""


class DocumentSource(ABC):
    """Documents in a fixed order, read with `read()` from the start or from a saved position.

    Attributes:
        key: Setting that describes the source, for error messages: `data` or `data.sources.NAME`.
        name: Name or path of the documents, for messages.
        libraries: Packages that read the documents; another version might read them differently.
        notes: What the user should know of what is read, such as files that are left out.
    """

    key: str
    name: str
    libraries: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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

    def earlier_content_identity(
        self, hash_file: Callable[[Path], str]
    ) -> tuple[Any, Callable[[], bool]] | None:
        """Return the `content_identity` of an earlier version of growlm, and how to see that it read the same.

        Tokens in a cache under that identity are right if the function, which may read the files, returns true.

        Args:
            hash_file: Function that returns a file's checksum.

        Returns:
            Both; None if the identity is the same today, or there was none.
        """
        return None

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
    """Text files of the user: plain text, JSON objects, CSV or parquet.

    Args:
        path: File, folder or glob pattern (see `find_text_files`).
        column: Column of a table, or key of a JSON object, that holds the text; a dotted path leads inside one.
        sample_by: Unit of plain text that is one document: `line`, `paragraph` or the whole `document`.
        key: Setting that describes the source, for error messages.
        delimiter: Delimiter of `.csv` and `.tsv` files, `tab` for one; None for a comma and a tab.
        filters: Conditions on the rows of tables (see `RowFilter`).
        given: Names of the settings that the user gave for this source, for a note on those that none of its files
            uses; None for those that differ from the defaults.

    Raises:
        UserError: If the path has no readable text, a setting is unknown or without effect, or the first document
            of a file is invalid (one per kind of file is read as a check).
    """

    def __init__(
        self,
        path: str,
        column: str,
        sample_by: str,
        key: str = "data",
        *,
        delimiter: str | None = None,
        filters: Mapping[str, Any] | None = None,
        given: Collection[str] | None = None,
    ) -> None:
        if sample_by not in SAMPLE_BY_CHOICES:
            raise UserError(
                f"{key}.sample_by", sample_by, f"must be one of {', '.join(SAMPLE_BY_CHOICES)}"
            )
        self.name, self.column, self.sample_by, self.key = path, column, sample_by, key
        self.delimiter, self.filters = parse_delimiter(delimiter, f"{key}.delimiter"), filters or {}
        RowFilter(self.filters, f"{key}.filter")
        found = search_text_files(path, f"{key}.path")
        self.files, self.notes = found.files, found.notes
        if self.delimiter and not any(file.kind in DELIMITERS for file in self.files):
            reason = f"there is no .csv or .tsv file in {path} to read with it; leave it out"
            raise UserError(f"{key}.delimiter", delimiter, reason)
        plain = next((file.path for file in self.files if file.kind == "text"), None)
        if self.filters and plain is not None:
            reason = f"plain text has no columns, and {plain} is read; leave this or the file out"
            raise UserError(f"{key}.filter", ", ".join(self.filters), reason)
        if any(file.kind == "parquet" or file.compression == ".zst" for file in self.files):
            self.libraries = ("pyarrow",)
        self._check_columns()
        self.notes += tuple(self._note_unused_settings(given))

    def read(self, position: ReaderPosition = None) -> TextFilesReader:
        """Read from the first file on, or from position `[file, document in it]`."""
        return TextFilesReader(self, position or (0, 0))

    def identity(self) -> Any:
        """Return the files' names, sizes and modification times, and how they are read."""
        file_identities = [list(file.identity()) for file in self.files]
        return ["text", self.column, self.sample_by, file_identities, *self._more_settings()]

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Return the files' kinds and checksums, and how they are read."""
        more = [PARAGRAPH_RULE] * self._has_paragraphs()
        return [*self._identify_contents(hash_file), *more, *self._more_settings()]

    def earlier_content_identity(
        self, hash_file: Callable[[Path], str]
    ) -> tuple[Any, Callable[[], bool]] | None:
        """Return the identity from when only empty lines parted paragraphs, and whether there are no others."""
        if not self._has_paragraphs() or self._more_settings():
            return None
        return self._identify_contents(hash_file), lambda: not self._has_white_lines()

    def _has_white_lines(self) -> bool:
        for file in self.files:
            if file.kind == "text":
                documents = self.open_documents(file)
                for _ in documents:
                    pass
                if documents.has_white_lines:
                    return True
        return False

    def _identify_contents(self, hash_file: Callable[[Path], str]) -> list[Any]:
        files = [[file.kind, file.compression, hash_file(file.path)] for file in self.files]
        return ["text", self.column, self.sample_by, files]

    def _has_paragraphs(self) -> bool:
        return self.sample_by == "paragraph" and any(file.kind == "text" for file in self.files)

    def _more_settings(self) -> list[Any]:
        """Return the settings that differ from those which every source once had."""
        more = {"delimiter": self.delimiter, "filter": self.filters}
        more = {name: value for name, value in more.items() if value}
        return [more] if more else []

    def stat_signatures(self) -> dict[Path, Any]:
        """Return each file's size, modification time and inode; None for a missing file."""
        return {file.path: _stat_signature_or_none(file) for file in self.files}

    def open_documents(self, file: TextFile) -> FileDocuments:
        """Open the documents of one file."""
        return FileDocuments(
            file,
            self.column,
            self.sample_by,
            f"{self.key}.path",
            delimiter=self.delimiter,
            row_filter=RowFilter(self.filters, f"{self.key}.filter") if self.filters else None,
        )

    def _note_unused_settings(self, given: Collection[str] | None) -> Iterator[str]:
        """Yield a note on each setting that is about another kind of file than those there are."""
        kinds = {file.kind == "text" for file in self.files}
        unused = {
            "column": (kinds == {True}, f"{self.name} is plain text, which has no columns"),
            "sample_by": (kinds == {False}, f"no file of {self.name} is plain text"),
        }
        for name, (is_unused, reason) in unused.items():
            value = getattr(self, name)
            is_given = value != DEFAULTS[name] if given is None else name in given
            if is_unused and is_given:
                yield f"{self.key}.{name}={value} is not used: {reason}"

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


def parse_delimiter(delimiter: str | None, key: str) -> str | None:
    """Return the character that a setting names.

    Raises:
        UserError: If it is not one character, or one that tables need otherwise.
    """
    if delimiter is None:
        return None
    names = {name: character for character, name in DELIMITER_NAMES.items()} | {r"\t": "\t"}
    character = names.get(delimiter, delimiter)
    if len(character) != 1 or character in '"\r\n':
        raise UserError(key, repr(delimiter), "must be one character, such as ; or |, or tab")
    return character


class TextFilesReader(DocumentReader):
    """A reader of the documents of several files, one file after another."""

    def __init__(self, source: TextFiles, position: Sequence[int]) -> None:
        self.source = source
        self.file_index, self.document_index, *marks = map(index, position)
        self._knows_white_lines = bool(marks) or self.document_index == 0
        self._num_filtered = 0
        self._open: FileDocuments | None = None
        self._sizes = [_file_size(file, source.key) for file in source.files]
        self._bytes_before = [0, *accumulate(self._sizes)]
        self._documents = self._read()

    def __next__(self) -> str:
        return next(self._documents)

    def position(self) -> ReaderPosition:
        """Return the index of the file, and of the next document in it.

        A third number is there if a line of white space may have parted paragraphs before it, which it did not in
        earlier versions of growlm.
        """
        has_white_lines = self._open is not None and self._open.has_white_lines
        return [self.file_index, self.document_index, *[1] * has_white_lines]

    @property
    def fraction_read(self) -> float:
        """Fraction of the files' bytes that has been read."""
        within = self._open.fraction_read * self._sizes[self.file_index] if self._open else 0
        return min(1.0, (self._bytes_before[self.file_index] + within) / self._bytes_before[-1])

    @property
    def selection(self) -> dict[str, int]:
        """Number of rows that the filter has left out, under `filter`; empty without a filter."""
        current = self._open.num_filtered if self._open else 0
        return {"filter": self._num_filtered + current} if self.source.filters else {}

    def close(self) -> None:
        """Close the open file."""
        self._documents.close()

    def _read(self) -> Generator[str]:
        first = self.file_index
        for index_of_file in range(first, len(self.source.files)):
            skipped = self.document_index if index_of_file == first else 0
            self.file_index, self.document_index = index_of_file, skipped
            self._num_filtered += self._open.num_filtered if self._open else 0
            self._open = self.source.open_documents(self.source.files[self.file_index])
            try:
                self._skip(self._open, skipped)
                for text in self._open:
                    self.document_index += 1
                    yield text
            finally:
                self._open.close()

    def _skip(self, documents: FileDocuments, count: int) -> None:
        """Read the documents before the position.

        Raises:
            UserError: If the position counts paragraphs that are parted in another way.
        """
        for _ in islice(documents, count):
            pass
        if documents.has_white_lines and not self._knows_white_lines:
            reason = (
                "the run stopped in this file in a version of growlm that did not part paragraphs at lines of "
                "white space; start a new run"
            )
            raise UserError(f"{self.source.key}.path", documents.file.path, reason)
        self._knows_white_lines = True
