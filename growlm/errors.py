"""The one error that is the user's to mend."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """What was asked for is wrong. Commands print it without a traceback and exit with 2.

    Args:
        key: Full path of the setting, as it is written on the command line.
        value: The value it had.
        allowed: What it may be, and why, in words.
    """

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={value}: {allowed}")

    def under(self, prefix: str) -> UserError:
        """The same error with `prefix` before its key."""
        return UserError(f"{prefix}.{self.key}", self.value, self.allowed)
