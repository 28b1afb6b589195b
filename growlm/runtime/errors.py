"""Errors that are told in words: what the user asked for, and what the machine could not do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """What was asked for is wrong. Commands print it without a traceback and exit with 2.

    Args:
        key: Full path of the setting, as it is written on the command line.
        value: The value it had.
        allowed: What it may be, and why, in words.
    """

    def __init__(self, key: str, value: Any, reason: str) -> None:
        self.key, self.value, self.reason = key, value, reason
        super().__init__(f"{key}={value}: {reason}")

    def with_key_prefix(self, prefix: str) -> UserError:
        """The same error with `prefix` before its key."""
        return UserError(f"{prefix}.{self.key}", self.value, self.reason)


class RunError(RuntimeError):
    """The run cannot go on, and it is nothing that was asked for. Commands print it and exit with 1."""


class DiskError(RunError):
    """A file or folder could not be written.

    Args:
        path: Which.
        error: The system's.
        missing: Bytes that were still to be written, where that is known.
    """

    def __init__(self, path: Path, error: OSError, bytes_missing: int | None = None) -> None:
        self.path, self.bytes_missing = path, bytes_missing
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        still = (
            f", {bytes_missing:,} bytes were still to be written"
            if is_full and bytes_missing
            else ""
        )
        super().__init__(f"cannot write {path}: {error.strerror or error}{still}")
