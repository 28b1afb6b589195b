"""Readers of the documents of one file: plain text, JSON objects, CSV or parquet.

Values are taken as written: no column's type is guessed, so that `007` and `NA` in a table stay text. Errors
name the file and line.
"""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO

from growlm.data.sources.compression import open_decompressed
from growlm.data.sources.json_rows import JsonRows, JsonRowsError
from growlm.data.sources.row_values import (
    MissingColumnError,
    RowFilter,
    describe_missing_column,
    find_root,
    get_value,
)
from growlm.data.sources.text_files import DELIMITER_NAMES, TextFile
from growlm.data.sources.text_lines import TextLines, TooLongError, describe_encoding_error
from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file

SAMPLE_BY_CHOICES = ("line", "paragraph", "document")
DELIMITERS = {"csv": ",", "tsv": "\t"}
"""Delimiter of each kind of table, unless the settings have one."""
OTHER_DELIMITERS = (";", "\t", "|", ",")
"""Delimiters that a message suggests, if a header of one field has one of them."""
MAX_HEADER_CHARACTERS = 1000
"""Part of a header that is searched for them."""
PARQUET_BATCH_ROWS = 32
"""Rows decoded at once. Few, because a small file may decode to large values."""
MAX_DOCUMENT_CHARACTERS = 2**30
"""The longest document that is read, also once it is decompressed."""


class FileDocuments(Iterator[str]):
    """An iterator over a file's documents; documents of only white space, and rows without a value, are skipped.

    Args:
        file: File to read according to its kind; text is UTF-8.
        column: Column of a table, or key of a JSON object, that holds the text; a dotted path leads inside one.
        sample_by: Unit of plain text that is one document: `line`, `paragraph` (separated by lines of nothing but
            white space) or the whole `document`.
        key: Setting that names the files, for error messages; the column's setting is its sibling, if it has any.
        delimiter: Delimiter of a `.csv` or `.tsv` file; None for the one of its kind.
        row_filter: Conditions on a table's rows; others are left out, and counted.

    Attributes:
        num_filtered: Number of rows that the filter has left out.
        has_white_lines: Whether plain text read by paragraphs had a line that is not empty, but all white space.

    Raises:
        UserError: On reaching invalid content, with its location.
    """

    def __init__(
        self,
        file: TextFile,
        column: str,
        sample_by: str,
        key: str,
        *,
        delimiter: str | None = None,
        row_filter: RowFilter | None = None,
    ) -> None:
        self.file, self.column, self.key = file, column, key
        self.sample_by, self.delimiter, self.row_filter = sample_by, delimiter, row_filter
        self.num_filtered, self.has_white_lines = 0, False
        self._raw: BinaryIO | None = None
        with self._translate_errors():
            self._size = max(1, file.path.stat().st_size)
        self._texts = self.read_texts()

    def __next__(self) -> str:
        while True:
            _, text = next(self._texts)
            if text and not text.isspace():
                return text

    @property
    def fraction_read(self) -> float:
        """Fraction of the file's bytes that has been read, from 0 to 1."""
        if self._raw is None:
            return 0.0
        return 1.0 if self._raw.closed else min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        """Close the file, whether or not it was read to the end."""
        self._texts.close()

    def read_texts(self) -> Generator[tuple[str, str | None]]:
        """Yield where each document is (`line 3`) and its text, blank ones too; None for a row without a value."""
        readers = {
            "text": self._read_text,
            "jsonl": self._read_json,
            "csv": self._read_csv,
            "tsv": self._read_csv,
            "parquet": self._read_parquet,
        }
        with (
            self._translate_errors(),
            open_input_file(self.file.path, self.key, root=None) as self._raw,
        ):
            yield from readers[self.file.kind](self._raw)

    def _read_text(self, raw: BinaryIO) -> Iterator[tuple[str, str]]:
        with self._open_lines(raw) as lines:
            if self.sample_by == "document":
                text = lines.stream.read(MAX_DOCUMENT_CHARACTERS + 1)
                lines.check_length(len(text), "the document")
                yield "line 1", text
            elif self.sample_by == "line":
                for line in lines:
                    yield f"line {lines.number}", line.rstrip("\n")
            else:
                for text in split_paragraphs(self._read_paragraph_lines(lines)):
                    yield f"the lines before {lines.number}", text

    def _read_json(self, raw: BinaryIO) -> Iterator[tuple[str, str | None]]:
        used = (self.column, *self._filter_columns)
        parts = {part for column in used for part in (column, *column.split("."))}
        with self._open_lines(raw) as lines:
            rows = JsonRows(lines, parts)
            for row in rows:
                where = f"line {rows.line}"
                if self._is_selected(row):
                    yield where, self._get_text(row, where)

    def _read_csv(self, raw: BinaryIO) -> Iterator[tuple[str, str | None]]:
        csv.field_size_limit(MAX_DOCUMENT_CHARACTERS)  # the default limit rejects 128 KiB
        delimiter = self.delimiter or DELIMITERS[self.file.kind]
        with self._open_lines(raw, newline="") as lines:
            rows, first_line = csv.reader(lines, delimiter=delimiter, strict=True), 1
            try:
                header = next(rows, [])
                index = header.index(self._find_column(header, is_table=True))
                for column in self._filter_columns:
                    self._find_filter_column(column, header)
                first_line = rows.line_num + 1
                for row in rows:
                    if row and len(row) != len(header):
                        where = f"the row that ends in line {rows.line_num}"
                        what = f"{len(row)} fields, but the header has {len(header)}"
                        raise self._file_error(f"{where} has {what}")
                    if row and (
                        not self.row_filter
                        or self._is_selected(dict(zip(header, row, strict=True)))
                    ):
                        yield f"line {first_line}", row[index]
                    first_line = rows.line_num + 1
            except csv.Error as error:
                where = f"in the row that begins in line {first_line}"
                reason = f"is not valid {self.file.kind.upper()}: {error}, {where}"
                raise self._file_error(reason) from None

    def _read_parquet(self, raw: BinaryIO) -> Iterator[tuple[str, str | None]]:
        import pyarrow.parquet as parquet

        table = parquet.ParquetFile(raw)
        names = table.schema_arrow.names
        roots = [self._find_column(names)]
        roots += [self._find_filter_column(column, names) for column in self._filter_columns]
        roots, number = list(dict.fromkeys(roots)), 0
        for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=roots, use_threads=False):
            columns = [batch.column(root) for root in roots]
            for values in zip(*columns, strict=True):  # not all at once: an entry may be repeated
                number += 1
                row = {root: value.as_py() for root, value in zip(roots, values, strict=True)}
                if self._is_selected(row):
                    yield f"row {number}", self._get_text(row, f"row {number}")

    @property
    def _filter_columns(self) -> tuple[str, ...]:
        return () if self.row_filter is None else self.row_filter.columns

    def _is_selected(self, row: dict[str, Any]) -> bool:
        if self.row_filter is None or self.row_filter.accepts(row):
            return True
        self.num_filtered += 1
        return False

    def _get_text(self, row: dict[str, Any], where: str) -> str | None:
        try:
            value = get_value(row, self.column)
        except MissingColumnError as error:
            raise self._column_error(f": {where} has {error}") from None
        if value is None or isinstance(value, str):
            return value
        hint = "; name what is inside, such as messages.0.content" * isinstance(value, list | dict)
        raise self._column_error(f": {where} holds a {type(value).__name__}, not text{hint}")

    def _find_column(self, columns: list[str], is_table: bool = False) -> str:
        """Return the column that holds the text, or has it inside, which no cell of a table of text has."""
        try:
            if is_table and self.column not in columns:
                raise MissingColumnError(describe_missing_column(columns))
            return find_root(self.column, columns)
        except MissingColumnError as error:
            hint = self._suggest_delimiter(columns) if is_table else ""
            raise self._column_error(f" has {error}{hint}") from None

    def _suggest_delimiter(self, columns: list[str]) -> str:
        group = self.key.rpartition(".")[0]
        if len(columns) != 1 or not group:
            return ""
        start = columns[0][:MAX_HEADER_CHARACTERS]
        other = next((mark for mark in OTHER_DELIMITERS if mark in start), None)
        return (
            ""
            if other is None
            else f". Try: {group}.delimiter={DELIMITER_NAMES.get(other, other)!r}"
        )

    def _find_filter_column(self, column: str, columns: list[str]) -> str:
        try:
            return find_root(column, columns)
        except MissingColumnError as error:
            assert self.row_filter is not None
            raise UserError(self.row_filter.key, column, f"{self.file.path} has {error}") from None

    def _read_paragraph_lines(self, lines: TextLines) -> Iterator[str]:
        length = 0
        for line in lines:
            is_blank = line.isspace()
            self.has_white_lines |= is_blank and line != "\n"
            length = 0 if is_blank else length + len(line)
            lines.check_length(length, f"the paragraph that goes on in line {lines.number}")
            yield line

    def _open_lines(self, raw: BinaryIO, newline: str | None = None) -> TextLines:
        return TextLines(raw, self.file.compression, newline, MAX_DOCUMENT_CHARACTERS)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError:
            raise self._file_error(self._describe_encoding_error()) from None
        except (JsonRowsError, TooLongError) as error:
            raise self._file_error(str(error)) from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "pyarrow":
                raise
            raise self._file_error(f"cannot be read: {_describe_error(error)}") from None

    def _describe_encoding_error(self) -> str:
        if self.file.kind == "parquet":
            return f"has text that is not UTF-8 in its column {self.column}"
        with open_input_file(self.file.path, self.key, root=None) as raw:
            return describe_encoding_error(open_decompressed(raw, self.file.compression))

    def _column_error(self, reason: str) -> UserError:
        group = self.key.rpartition(".")[0]
        if not group:  # the column is not a setting
            what = f"must have texts under {self.column!r}: {reason.removeprefix(': ').strip()}"
            return self._file_error(what)
        return UserError(f"{group}.column", self.column, f"{self.file.path}{reason}")

    def _file_error(self, reason: str) -> UserError:
        return UserError(self.key, self.file.path, reason)


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield runs of lines that are not blank, each joined and without its last line end."""
    block: list[str] = []
    for line in chain(lines, ["\n"]):
        if not line.isspace():
            block.append(line)
        elif block:
            yield "".join(block).rstrip("\n")
            block = []


def _describe_error(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
