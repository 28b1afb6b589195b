"""Check that values parsed from a file are of the types that dataclasses and `TypedDict`s declare."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

MAX_SHOWN_CHARACTERS = 40
"""Characters of a value or key that a message repeats."""
TYPE_DESCRIPTIONS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
Validator = Callable[[Any], str | None]
"""Returns what a value must be, if it is not."""


def at_least(minimum: float) -> Validator:
    """Make the check of a smallest value, for `Annotated`."""
    return lambda value: None if value >= minimum else f"must be at least {minimum}"


def check_positive(value: float) -> str | None:
    """Check that a number is finite and above 0."""
    return None if 0 < value < math.inf else "must be a finite number above 0"


NonNegativeInt = Annotated[int, at_least(0)]


def parse_as(expected_type: Any, value: Any, location: str = "") -> Any:
    """Return a value as the type that is declared for it: dataclasses built, everything else as it is.

    A dataclass takes the keys of its fields and no others; a `TypedDict` may have more, which stay unchecked. An
    integer is a number, a boolean is none.

    Args:
        kind: Plain types, lists, dicts, unions, enumerations, dataclasses, `TypedDict`s, or `Annotated` with a
            `Check`.
        value: As `parse_json` or `parse_yaml` gives it.
        place: Where the value stands in its file, for messages.

    Raises:
        ValueError: Naming the place of the first value that is none.
    """
    origin, arguments = get_origin(expected_type), get_args(expected_type)
    if expected_type is Any:
        return value
    if origin is Annotated:
        found = parse_as(arguments[0], value, location)
        if wanted := arguments[1](found):
            raise make_value_error(location, wanted, value)
        return found
    if origin is NotRequired:
        return parse_as(arguments[0], value, location)
    if origin in (Union, UnionType):
        return _parse_union(arguments, value, location)
    if origin is list:
        items = _check_type(list, value, location)
        return [parse_as(arguments[0], item, f"{location}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        pairs = _check_type(dict, value, location).items()
        return {
            _check_type(str, key, location): parse_as(
                arguments[1], item, join_location(location, key)
            )
            for key, item in pairs
        }
    if is_typeddict(expected_type):
        return _parse_typed_dict(expected_type, value, location)
    if dataclasses.is_dataclass(expected_type):
        return _parse_dataclass(expected_type, value, location)
    if isinstance(expected_type, type) and issubclass(expected_type, Enum):
        known = [member.value for member in expected_type]
        if value not in known:
            raise make_value_error(location, f"must be one of {', '.join(map(str, known))}", value)
        return expected_type(value)
    return _check_type(expected_type, value, location)


def join_location(location: str, key: object) -> str:
    """Return the place of a key's value in the mapping at a place."""
    name = truncate_text(str(key))
    return f"{location}.{name}" if location else name


def truncate_text(text: str) -> str:
    """Return as much of a text as a message repeats."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} ..."


def make_value_error(location: str, requirement: str, value: Any) -> ValueError:
    """Return the error about a value."""
    return ValueError(f"{location or 'its content'} {requirement}, and is {_format_value(value)}")


def _format_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return (
            TYPE_DESCRIPTIONS[type(value)] if value else ("[]" if isinstance(value, list) else "{}")
        )
    return truncate_text(repr(value))


def _check_type(expected_type: type, value: Any, location: str) -> Any:
    fits = type(value) is expected_type or (expected_type is float and type(value) is int)
    if not fits:
        raise make_value_error(
            location,
            f"must be {TYPE_DESCRIPTIONS.get(expected_type, expected_type.__name__)}",
            value,
        )
    return value


def _parse_union(members: tuple[Any, ...], value: Any, location: str) -> Any:
    """The first of several types that the value is of; of one type or null, the error is about the type."""
    others = [kind for kind in members if kind is not NoneType]
    if value is None and len(others) < len(members):
        return None
    for kind in others[:-1]:
        try:
            return parse_as(kind, value, location)
        except ValueError:
            continue
    return parse_as(others[-1], value, location)


@cache
def _get_type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _parse_typed_dict(expected_type: Any, value: Any, location: str) -> dict[str, Any]:
    content = _check_type(dict, value, location)
    hints = _get_type_hints(expected_type)
    for (
        key,
        hint,
    ) in hints.items():  # not by __required_keys__, which no postponed annotation gets into
        is_required = expected_type.__total__ and get_origin(hint) is not NotRequired
        if is_required and key not in content:
            raise ValueError(f"{join_location(location, key)} is missing")
    known = {
        k: parse_as(hints[k], v, join_location(location, k))
        for k, v in content.items()
        if k in hints
    }
    return {**content, **known}


def _parse_dataclass(expected_type: Any, value: Any, location: str) -> Any:
    content = _check_type(dict, value, location)
    fields = {field.name: field for field in dataclasses.fields(expected_type) if field.init}
    for key in content:
        if key not in fields:
            raise ValueError(f"{join_location(location, key)} is not known")
    for name, field in fields.items():
        is_optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in content and not is_optional:
            raise ValueError(f"{join_location(location, name)} is missing")
    hints = _get_type_hints(expected_type)
    return expected_type(
        **{k: parse_as(hints[k], v, join_location(location, k)) for k, v in content.items()}
    )
