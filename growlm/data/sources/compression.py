"""Read compressed files: the kinds of compression by suffix, and the stream of the bytes inside."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import IO, BinaryIO, cast


def _open_zst(raw: BinaryIO) -> IO[bytes]:
    import pyarrow  # zstandard's own reader takes a truncated file for a complete one

    return cast(IO[bytes], pyarrow.CompressedInputStream(raw, "zstd"))


READERS: dict[str, Callable[[BinaryIO], IO[bytes]]] = {
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw)),
    ".zst": _open_zst,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
"""Reader of each kind of compression, by suffix; a truncated file is an error for all of them."""
COMPRESSION_SUFFIXES = tuple(READERS)


def open_decompressed(raw: BinaryIO, compression: str) -> IO[bytes]:
    """Return a stream of the decompressed bytes of an open file.

    Args:
        raw: Open file.
        compression: One of `COMPRESSION_SUFFIXES`, or an empty string for none.
    """
    return READERS[compression](raw) if compression else raw
