"""Define the errors that commands report as one line, without a traceback."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """An invalid setting or input. Commands print it without a traceback and exit with 2.

    Args:
        key: Full path of the setting, as on the command line.
        value: Rejected value of the setting.
        reason: What is wrong with the value, or what it may be.
    """

    def __init__(self, key: str, value: Any, reason: str) -> None:
        self.key, self.value, self.reason = key, value, reason
        super().__init__(f"{key}={value}: {reason}")

    def with_key_prefix(self, prefix: str) -> UserError:
        """Return the same error with `prefix` before its key."""
        return UserError(f"{prefix}.{self.key}", self.value, self.reason)


class RunError(RuntimeError):
    """A failure of the run that no setting caused. Commands print it and exit with 1."""


class DiskError(RunError):
    """A file or folder could not be written.

    Args:
        path: File or folder that could not be written.
        error: Error from the operating system.
        bytes_missing: Number of bytes that were still to be written, if known.
    """

    def __init__(self, path: Path, error: OSError, bytes_missing: int | None = None) -> None:
        self.path, self.bytes_missing = path, bytes_missing
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remaining = (
            f", {bytes_missing:,} bytes were still to be written"
            if is_full and bytes_missing
            else ""
        )
        super().__init__(f"cannot write {path}: {error.strerror or error}{remaining}")
