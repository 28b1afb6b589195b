"""Readers of the documents of one file: plain text, JSON lines, CSV or parquet.

Values are taken as written: no column's type is guessed, so that `007` and `NA` in a table stay text. Errors
name the file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import IO, Any, BinaryIO, cast

from growlm.data.sources.text_files import TextFile
from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file

SAMPLE_BY_CHOICES = ("line", "paragraph", "document")
PARQUET_BATCH_ROWS = 32
"""Rows decoded at once. Few, because a small file may decode to large values."""
MAX_DOCUMENT_CHARACTERS = 2**30
"""The longest document that is read, also once it is decompressed."""


class FileDocuments(Iterator[str]):
    """An iterator over a file's documents; documents of only white space, and rows without a value, are skipped.

    Args:
        file: File to read according to its kind; text is UTF-8.
        column: Column of a table, or key of a JSON object, that holds the text.
        sample_by: Unit of plain text that is one document: `line`, `paragraph` (separated by empty lines) or the
            whole `document`.
        key: Setting that names the files, for error messages; the column's setting is its sibling.

    Raises:
        UserError: On reaching invalid content, with its location.
    """

    def __init__(self, file: TextFile, column: str, sample_by: str, key: str) -> None:
        self.file, self.column, self.key = file, column, key
        self.sample_by = sample_by
        self._raw: BinaryIO | None = None
        with self._translate_errors():
            self._size = max(1, file.path.stat().st_size)
        self._documents = self._read()

    def __next__(self) -> str:
        return next(self._documents)

    @property
    def fraction_read(self) -> float:
        """Fraction of the file's bytes that has been read, from 0 to 1."""
        if self._raw is None:
            return 0.0
        return 1.0 if self._raw.closed else min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        """Close the file, whether or not it was read to the end."""
        self._documents.close()

    def _read(self) -> Generator[str]:
        readers = {
            "text": self._read_text,
            "jsonl": self._read_json_lines,
            "csv": self._read_csv,
            "parquet": self._read_parquet,
        }
        with (
            self._translate_errors(),
            open_input_file(self.file.path, self.key, root=None) as self._raw,
        ):
            for text in readers[self.file.kind](self._raw):
                if text and not text.isspace():
                    yield text

    def _read_text(self, raw: BinaryIO) -> Iterator[str]:
        with self._open_lines(raw) as lines:
            if self.sample_by == "document":
                text = lines.read(MAX_DOCUMENT_CHARACTERS + 1)
                self._check_length(len(text), "the document")
                yield text
            elif self.sample_by == "line":
                yield from (line.rstrip("\n") for line in self._read_lines(lines))
            else:
                yield from split_paragraphs(self._read_paragraph_lines(lines))

    def _read_json_lines(self, raw: BinaryIO) -> Iterator[str | None]:
        with self._open_lines(raw) as lines:
            for number, line in enumerate(self._read_lines(lines), start=1):
                if not line.isspace():
                    yield self._parse_json_line(line, number)

    def _parse_json_line(self, line: str, number: int) -> str | None:
        try:
            row = json.loads(line)  # not `parse_json`, which also checks unused fields
        except (ValueError, RecursionError):
            raise self._file_error(f"line {number} is not valid JSON") from None
        if not isinstance(row, dict):
            raise self._file_error(f"line {number} is not a JSON object; each line must be one")
        if self.column not in row:
            raise self._missing_column_error(list(row), f" in line {number}")
        return self._check_text(row[self.column], f"line {number}")

    def _read_csv(self, raw: BinaryIO) -> Iterator[str | None]:
        csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the default limit rejects 128 KiB
        with self._open_lines(raw, newline="") as lines:
            rows = csv.reader(self._read_lines(lines), strict=True)
            header = next(rows, [])
            if self.column not in header:
                raise self._missing_column_error(header)
            index = header.index(self.column)
            for row in filter(None, rows):
                if len(row) != len(header):
                    what = f"{len(row)} fields, but the header has {len(header)}"
                    raise self._file_error(f"the row that ends in line {rows.line_num} has {what}")
                yield row[index]

    def _read_parquet(self, raw: BinaryIO) -> Iterator[str | None]:
        import pyarrow.parquet as parquet

        table = parquet.ParquetFile(raw)
        if self.column not in table.schema_arrow.names:
            raise self._missing_column_error(table.schema_arrow.names)
        for batch in table.iter_batches(
            PARQUET_BATCH_ROWS, columns=[self.column], use_threads=False
        ):
            for value in batch.column(0):  # not all at once: a dictionary's entry may be repeated
                yield self._check_text(value.as_py(), "a row")

    def _read_lines(self, lines: io.TextIOWrapper) -> Iterator[str]:
        for number in count(1):
            line = lines.readline(MAX_DOCUMENT_CHARACTERS + 1)
            if not line:
                return
            self._check_length(len(line), f"line {number}")
            yield line

    def _read_paragraph_lines(self, lines: io.TextIOWrapper) -> Iterator[str]:
        length = 0
        for number, line in enumerate(self._read_lines(lines), start=1):
            length = 0 if line == "\n" else length + len(line)
            self._check_length(length, f"the paragraph that goes on in line {number}")
            yield line

    def _check_length(self, length: int, what: str) -> None:
        if length > MAX_DOCUMENT_CHARACTERS:
            limit = f"{MAX_DOCUMENT_CHARACTERS:,} characters"
            raise self._file_error(f"{what} is longer than the limit of {limit}; split it")

    def _open_lines(self, raw: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
        decompressed: IO[bytes] = raw
        if self.file.compression == ".gz":
            decompressed = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        elif self.file.compression == ".zst":
            import pyarrow  # zstandard's own reader takes a truncated file for a complete one

            decompressed = cast(IO[bytes], pyarrow.CompressedInputStream(raw, "zstd"))
        return io.TextIOWrapper(decompressed, encoding="utf-8-sig", newline=newline)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError:
            raise self._file_error("is not UTF-8 text") from None
        except csv.Error as error:
            raise self._file_error(f"is not valid CSV: {error}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "pyarrow":
                raise
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None

    def _check_text(self, value: Any, where: str) -> str | None:
        if value is None or isinstance(value, str):
            return value
        what = f"{where} holds a {type(value).__name__}, not text"
        raise UserError(self._column_key, self.column, f"{self.file.path}: {what}")

    def _missing_column_error(self, columns: Iterable[str], where: str = "") -> UserError:
        names = ", ".join(columns) or "none"
        return UserError(
            self._column_key,
            self.column,
            f"{self.file.path} has no such column{where}; its columns are: {names}",
        )

    @property
    def _column_key(self) -> str:
        return f"{self.key.rpartition('.')[0]}.column"

    def _file_error(self, reason: str) -> UserError:
        return UserError(self.key, self.file.path, reason)


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield runs of non-empty lines, each joined and without its last line end."""
    block: list[str] = []
    for line in chain(lines, ["\n"]):
        if line != "\n":
            block.append(line)
        elif block:
            yield "".join(block).rstrip("\n")
            block = []


def _describe_error(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
