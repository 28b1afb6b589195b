"""Small files written whole; imports nothing heavy, so that light commands can use it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from growlm.errors import DiskError


def write_whole(path: Path, text: str) -> None:
    """Write a small file, in UTF-8, beside its place, then rename it; a link in either place is not followed.

    Raises:
        DiskError: If it cannot be written; what was there before stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(
            missing_ok=True
        )  # of a process that was killed, or a link that somebody has put there
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DiskError(path, error, len(text)) from error
