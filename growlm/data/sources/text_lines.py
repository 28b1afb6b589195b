"""Read the lines of a UTF-8 file, count them, and find the line that is not UTF-8."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, BinaryIO

from growlm.data.sources.compression import open_decompressed

SCAN_BYTES = 1 << 20
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TooLongError(ValueError):
    """A line or document is longer than the limit; the message says which."""


class TextLines(Iterator[str]):
    """An iterator over the lines of a UTF-8 file, which counts them; a byte order mark is skipped.

    Args:
        raw: Open file.
        compression: Suffix of its compression, or an empty string.
        newline: As of `open`: None turns every line end into a line feed, an empty string keeps them.
        max_characters: Limit of a line's length.
    """

    def __init__(
        self, raw: BinaryIO, compression: str, newline: str | None, max_characters: int
    ) -> None:
        stream = open_decompressed(raw, compression)
        self.stream = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)
        self.max_characters, self.number = max_characters, 0

    def __next__(self) -> str:
        line = self.stream.readline(self.max_characters + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.check_length(len(line), f"line {self.number}")
        return line

    def __enter__(self) -> TextLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def check_length(self, length: int, what: str) -> None:
        """Check a length against the limit.

        Raises:
            TooLongError: If it is larger; the message names `what`.
        """
        if length > self.max_characters:
            limit = f"{self.max_characters:,} characters"
            raise TooLongError(f"{what} is longer than the limit of {limit}; split it")


def describe_encoding_error(stream: IO[bytes]) -> str:
    """Return what is wrong with a stream that is not UTF-8: the line and the byte, or which encoding it has.

    Args:
        stream: Stream at its beginning; it is read up to the error.
    """
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    chunk = stream.read(SCAN_BYTES)
    if chunk.startswith(UTF16_MARKS):
        return "is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8"
    while True:
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            number += error.object.count(b"\n", 0, error.start)
            return f"is not UTF-8 text: byte 0x{error.object[error.start]:02x} in line {number:,}"
        if not chunk:
            return "is not UTF-8 text"  # it was when it was read again
        number += chunk.count(b"\n")
        chunk = stream.read(SCAN_BYTES)
