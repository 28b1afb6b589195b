"""Text that came from a file, made safe to show: what a terminal would obey is written as an escape."""

from __future__ import annotations

import re
from typing import Any

UNPRINTABLE_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and line feed
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the order of text
    r"\ud800-\udfff]"  # halves of surrogate pairs, which no encoding takes
)

MAX_REASON_LENGTH = 300
"""Characters of what a library says of a file."""


def escape_unprintable(text: str) -> str:
    r"""Return the text with control characters as escapes, as in `\x1b[31m`; tabs and line feeds stay."""
    return UNPRINTABLE_CHARACTERS.sub(
        lambda found: found[0].encode("unicode_escape").decode(), text
    )


def escape_unprintable_line(text: str) -> str:
    """Return the text as `printable` does, with line feeds as escapes too."""
    return escape_unprintable(text).replace("\n", "\\n")


def escape_unprintable_data(value: Any) -> Any:
    """Return plain JSON data with every text in it, keys too, as `printable` gives it."""
    if isinstance(value, str):
        return escape_unprintable(value)
    if isinstance(value, dict):
        return {
            escape_unprintable_data(key): escape_unprintable_data(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [escape_unprintable_data(item) for item in value]
    return value


def summarize_error(error: BaseException) -> str:
    """Return what a library says went wrong, on one line of moderate length: it may repeat a whole file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]} ..."
