"""Write small text files atomically, and open files for appending; imports nothing heavy."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from growlm.runtime.errors import DiskError


def open_for_append(path: Path) -> BinaryIO:
    """Open a file for appending; create it if missing, and do not follow a symbolic link.

    Raises:
        DiskError: If it cannot be opened, or is not a regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise DiskError(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DiskError(path, OSError(errno.EINVAL, "not a regular file"))
    return os.fdopen(descriptor, "ab")


def atomic_write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file under a temporary name, then rename it; do not follow symbolic links.

    Raises:
        DiskError: If it cannot be written; an earlier version of the file stays.
    """
    # Processes that write at the same time need different temporary files, or one renames the other's partial
    # file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DiskError(path, error, len(text)) from error
