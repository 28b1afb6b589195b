"""The documents of one file, as they stand in it, one after another.

Values are taken as they are written: no column's type is guessed, so that `007` and `NA` in a table stay text, and
what cannot be read is said with its file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, BinaryIO, cast

from growlm.data.sources.text_files import TextFile
from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file

SAMPLE_BY_CHOICES = ("line", "paragraph", "document")
PARQUET_BATCH_ROWS = 1024


class FileDocuments(Iterator[str]):
    """Documents of a file; those of nothing but white space, and rows without a value, are left out.

    Args:
        file: Read as its kind says; text in UTF-8.
        column: Of a table or of JSON objects: where the text is.
        sample_by: Of plain text, what a document is: a `line`, a `paragraph` (empty lines between them) or the
            whole file as one `document`.
        key: What the user calls the files, for messages; the column's key is beside it.

    Raises:
        UserError: On reaching what cannot be read, with its place.
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
        """Of the file's bytes, between 0 and 1."""
        if self._raw is None:
            return 0.0
        return 1.0 if self._raw.closed else min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        """Let go of the file, read to the end or not."""
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
                yield lines.read()
            elif self.sample_by == "line":
                yield from (line.rstrip("\n") for line in lines)
            else:
                yield from split_paragraphs(lines)

    def _read_json_lines(self, raw: BinaryIO) -> Iterator[str | None]:
        with self._open_lines(raw) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield self._parse_json_line(line, number)

    def _parse_json_line(self, line: str, number: int) -> str | None:
        try:
            row = json.loads(
                line
            )  # not `parse_json`: what else a row of data holds does not matter
        except (ValueError, RecursionError):
            raise self._file_error(f"line {number} is no JSON") from None
        if not isinstance(row, dict):
            raise self._file_error(f"line {number} is no JSON object, one a line is needed")
        if self.column not in row:
            raise self._missing_column_error(list(row), f" in line {number}")
        return self._check_text(row[self.column], f"line {number}")

    def _read_csv(self, raw: BinaryIO) -> Iterator[str | None]:
        csv.field_size_limit(sys.maxsize)  # the default refuses documents of 128 KiB
        with self._open_lines(raw, newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = next(rows, [])
            if self.column not in header:
                raise self._missing_column_error(header)
            index = header.index(self.column)
            for row in filter(None, rows):
                if len(row) != len(header):
                    what = f"{len(row)} fields, its header has {len(header)}"
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
            values = batch.column(0).to_pylist()
            yield from (self._check_text(value, "a row") for value in values)

    def _open_lines(self, raw: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
        plain: IO[bytes] = raw
        if self.file.compression == ".gz":
            plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        elif self.file.compression == ".zst":
            import pyarrow  # zstandard's own reader takes a file that was cut for one that ends

            plain = cast(IO[bytes], pyarrow.CompressedInputStream(raw, "zstd"))
        return io.TextIOWrapper(plain, encoding="utf-8-sig", newline=newline)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError:
            raise self._file_error("is not UTF-8 text") from None
        except csv.Error as error:
            raise self._file_error(f"is no CSV: {error}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "pyarrow":
                raise
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None

    def _check_text(self, value: Any, where: str) -> str | None:
        if value is None or isinstance(value, str):
            return value
        what = f"{where} holds a {type(value).__name__}, no text"
        raise UserError(self._column_key, self.column, f"{self.file.path}: {what}")

    def _missing_column_error(self, there: Iterable[str], where: str = "") -> UserError:
        names = ", ".join(there) or "none"
        return UserError(
            self._column_key,
            self.column,
            f"{self.file.path} has no such column{where}; there are: {names}",
        )

    @property
    def _column_key(self) -> str:
        return f"{self.key.rpartition('.')[0]}.column"

    def _file_error(self, what: str) -> UserError:
        return UserError(self.key, self.file.path, what)


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined, up to the next empty one; the line end at its end is not part of a paragraph."""
    block: list[str] = []
    for line in chain(lines, ["\n"]):
        if line != "\n":
            block.append(line)
        elif block:
            yield "".join(block).rstrip("\n")
            block = []


def _describe_error(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
