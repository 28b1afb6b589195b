"""Make text from files safe to print: control characters become visible escapes."""

from __future__ import annotations

import re
from typing import Any

UNPRINTABLE_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and line feed
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the text direction
    r"\ud800-\udfff]"  # unpaired surrogates, which UTF-8 cannot encode
)

MAX_REASON_LENGTH = 300
"""Longest error text of a library that a message repeats, in characters."""


def escape_unprintable(text: str) -> str:
    r"""Return the text with control characters escaped, as in `\x1b[31m`; keep tabs and line feeds."""
    return UNPRINTABLE_CHARACTERS.sub(
        lambda found: found[0].encode("unicode_escape").decode(), text
    )


def escape_unprintable_line(text: str) -> str:
    """Return the text with control characters escaped, line feeds included."""
    return escape_unprintable(text).replace("\n", "\\n")


def escape_unprintable_data(value: Any) -> Any:
    """Return JSON-like data with every string in it, keys included, escaped."""
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
    """Return a library's error text on one line, truncated because it may repeat a whole file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]} ..."
