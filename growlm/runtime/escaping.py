"""Text that came from a file, made safe to show: what a terminal would obey is written as an escape."""

from __future__ import annotations

import re
from typing import Any

UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and line feed
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the order of text
    r"\ud800-\udfff]"  # halves of surrogate pairs, which no encoding takes
)

LONGEST_REASON = 300
"""Characters of what a library says of a file."""


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes, as in `\x1b[31m`; tabs and line feeds stay."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_line(text: str) -> str:
    """Return the text as `printable` does, with line feeds as escapes too."""
    return printable(text).replace("\n", "\\n")


def printable_data(value: Any) -> Any:
    """Return plain JSON data with every text in it, keys too, as `printable` gives it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_data(key): printable_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_data(item) for item in value]
    return value


def reason_of(error: BaseException) -> str:
    """Return what a library says went wrong, on one line of moderate length: it may repeat a whole file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
