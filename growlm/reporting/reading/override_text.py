"""Show overrides as a user types them, where growlm has quoted their text for Hydra; imports nothing heavy."""

from __future__ import annotations

import re

QUOTED_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
"""Pattern of a value that is a single quoted string in Hydra's grammar."""
_ITEM = rf"(?:{QUOTED_STRING.pattern}|null)"
_QUOTED_LIST = re.compile(rf"{_ITEM}(?:,{_ITEM})+", re.DOTALL)
PROMPT_KEYS = ("callbacks.sample_prompt", "prompt")
"""Text settings in whose values no character has a special meaning: neither quotes, nor `null`, nor `${key}`."""


def unquote(value: str) -> str:
    """Return the text of a quoted string of Hydra's grammar; other values unchanged."""
    if not QUOTED_STRING.fullmatch(value):
        return value
    # A backslash escapes only a quote, and a backslash that stands before one or at the end.
    return re.sub(
        rf"(\\+)({value[0]}|\Z)", lambda found: "\\" * (len(found[1]) // 2) + found[2], value[1:-1]
    )


def format_as_typed(override: str) -> str:
    """Return an override so that typing it on a command line gives the same override again.

    A prompt is shown without the quotes that it would otherwise be taken to contain, and texts to sweep over as
    `choice('a','b')`.
    """
    key, equals, value = override.partition("=")
    if _QUOTED_LIST.fullmatch(value):
        value = f"choice({value})"
    elif key.lstrip("+") in PROMPT_KEYS:
        value = unquote(value)
    else:
        return override
    if key.lstrip("+") in PROMPT_KEYS:
        value = re.sub(r"(\\+)\$\{", lambda found: "\\" * (len(found[1]) // 2) + "${", value)
    return f"{key}{equals}{value}"


def normalize_override(override: str) -> str:
    """Return an override without quotes around its whole value, which growlm 0.1 wrote for fewer keys."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{unquote(value)}"
