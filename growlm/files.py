"""Small files written whole; imports nothing heavy, so that light commands can use it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from growlm.errors import DiskError


def write_whole(path: Path, text: str) -> None:
    """Write a small file, in UTF-8, beside its place, then rename it.

    Raises:
        DiskError: If it cannot be written; what was there before stays.
    """
    # Of two processes that write at once, each has its own: else one would rename the other's half of a file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DiskError(path, error, len(text)) from error
