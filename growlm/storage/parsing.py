"""Parse untrusted JSON and YAML: limited depth and size of numbers, no aliases, no duplicate keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from growlm.storage.typed_values import join_location, truncate_text

MAX_DEPTH = 64
"""Maximum nesting depth of lists and mappings."""
MAX_INTEGER_DIGITS = 39
"""Maximum digits of an integer: it stays below 2**128, so sums and quotients stay within the range of floats."""
NONFINITE_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _InvalidValue:
    """A placeholder for a rejected value, until its location is known for the error message."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def parse_json(text: str, allow_nan: bool = False) -> Any:
    """Parse JSON text.

    Args:
        text: JSON text of a whole document.
        allow_nan: Whether NaN and infinities are accepted as numbers, as Python writes them for a diverged loss.

    Raises:
        ValueError: If it is not valid JSON, is nested too deeply, or has a duplicate key or too large a number.
    """

    def constant(name: str) -> Any:
        return (
            NONFINITE_CONSTANTS[name]
            if allow_nan
            else _InvalidValue(f"is {name}, not a finite number")
        )

    try:
        value = json.loads(
            text,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=constant,
            object_pairs_hook=_build_mapping,
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"is not valid JSON: {error.msg} in {where}") from None
    _check_values(value)
    return value


def parse_yaml(text: str) -> Any:
    """Parse YAML text of plain values; dates stay strings.

    Raises:
        ValueError: If it is not valid YAML, nested too deeply, or has an alias or a value that JSON lacks.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(fast):  # type: ignore[misc, valid-type]
        yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
            first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
            for first, found in fast.yaml_implicit_resolvers.items()
        }

    try:
        _check_events(yaml.parse(text, Loader=fast))
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f" in line {mark.line + 1} column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "no document"
        raise ValueError(f"is not valid YAML: {what}{where}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except OverflowError:
        raise ValueError("has a number that is too large") from None
    _check_values(value)
    return value


def _parse_integer(text: str) -> Any:
    digits = len(text.lstrip("-"))
    return (
        int(text)
        if digits <= MAX_INTEGER_DIGITS
        else _InvalidValue(_format_too_many_digits(digits))
    )


def _format_too_many_digits(digits: int) -> str:
    return f"is a number of {digits:,} digits (at most {MAX_INTEGER_DIGITS} are allowed)"


def _parse_float(text: str) -> Any:
    value = float(text)
    return (
        value
        if math.isfinite(value)
        else _InvalidValue(f"is {truncate_text(text)}, too large for a float")
    )


def _build_mapping(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return _InvalidValue(f"has the key {truncate_text(duplicate)!r} twice")
    return found


def _check_events(events: Iterator[Any]) -> None:
    """Reject nesting that is too deep, and aliases, which could expand to far more than the text."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise ValueError(f"has an alias in line {line} (*{truncate_text(event.anchor)})")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise ValueError(
                f"is nested too deeply in line {line} (at most {MAX_DEPTH} levels are allowed)"
            )


_PLAIN_TYPES = (str, int, float, bool, type(None), list, dict)
_INTEGER_LIMIT = 10**MAX_INTEGER_DIGITS


def _check_values(value: Any) -> None:
    """Check all values, in no particular order, and reject the first invalid one."""
    _check_plain_value(value, ())
    # Each item has a value, its depth, and its location: its key and the location of its container.
    waiting: list[tuple[Any, int, _Location]] = [(value, 1, ())]
    while waiting:
        found, depth, place = waiting.pop()
        if isinstance(found, dict):
            items: Any = found.items()
        elif isinstance(found, list):
            items = enumerate(found)
        else:
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested too deeply (at most {MAX_DEPTH} levels are allowed)")
        for key, item in items:
            kind = type(item)
            if kind is str or kind is float:
                continue
            if kind is dict or kind is list:
                if item:
                    waiting.append((item, depth + 1, (key, place)))
            else:
                _check_plain_value(item, (key, place))


_Location = tuple[Any, ...]


def _check_plain_value(value: Any, location: _Location) -> None:
    if isinstance(value, _InvalidValue):
        raise ValueError(f"{_format_location(location)}{value.reason}")
    if not isinstance(value, _PLAIN_TYPES):
        raise ValueError(
            f"{_format_location(location)}is a {type(value).__name__}, not a plain value"
        )
    if type(value) is int and not -_INTEGER_LIMIT < value < _INTEGER_LIMIT:
        digits = round(value.bit_length() * math.log10(2))
        raise ValueError(f"{_format_location(location)}{_format_too_many_digits(digits)}")


def _format_location(location: _Location) -> str:
    keys = []
    while location:
        key, location = location
        keys.append(key)
    words = ""
    for key in reversed(keys):
        words = f"{words}[{key}]" if type(key) is int else join_location(words, key)
    return f"{words} " if words else ""
