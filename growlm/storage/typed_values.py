"""Validate values parsed from a file against the types that dataclasses and `TypedDict`s declare."""

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
"""Maximum characters of a value or key that a message shows."""
TYPE_DESCRIPTIONS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
Validator = Callable[[Any], str | None]
"""A function that returns what a value must be, or None if it is valid."""


def at_least(minimum: float) -> Validator:
    """Return a validator of a minimum, for use in `Annotated`."""
    return lambda value: None if value >= minimum else f"must be at least {minimum}"


def check_positive(value: float) -> str | None:
    """Return what is required if the number is not finite and above 0; None if it is."""
    return None if 0 < value < math.inf else "must be a finite number above 0"


NonNegativeInt = Annotated[int, at_least(0)]


def parse_as(expected_type: Any, value: Any, location: str = "") -> Any:
    """Validate a parsed value against a type; build dataclasses, return everything else unchanged.

    A dataclass accepts only the keys of its fields. A `TypedDict` may have more keys, which stay unchecked.
    Integers are accepted as floats; booleans are not numbers.

    Args:
        expected_type: A plain type, list, dict, union, enumeration, dataclass, `TypedDict`, or `Annotated` with a
            `Validator`.
        value: Value from `parse_json` or `parse_yaml`.
        location: Location of the value in its file, for error messages.

    Raises:
        ValueError: For the first value of another type, with its location.
    """
    origin, arguments = get_origin(expected_type), get_args(expected_type)
    if expected_type is Any:
        return value
    if origin is Annotated:
        found = parse_as(arguments[0], value, location)
        if requirement := arguments[1](found):
            raise make_value_error(location, requirement, value)
        return found
    if origin is NotRequired:
        return parse_as(arguments[0], value, location)
    if origin in (Union, UnionType):
        return _parse_union(arguments, value, location)
    if origin in (list, tuple):  # a tuple is of any length; files have lists
        items = value if type(value) is origin else _check_type(list, value, location)
        found = [parse_as(arguments[0], item, f"{location}[{i}]") for i, item in enumerate(items)]
        return origin(found)
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
    """Return the location of a key in the mapping at `location`, as in `jobs[0].folder`."""
    name = truncate_text(str(key))
    return f"{location}.{name}" if location else name


def truncate_text(text: str) -> str:
    """Return the text, truncated to what a message shows."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} ..."


def make_value_error(location: str, requirement: str, value: Any) -> ValueError:
    """Return the error that a value does not meet a requirement."""
    return ValueError(f"{location or 'its content'} {requirement}, but is {_format_value(value)}")


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
    """Parse the value as the first matching member; if none matches, report the error for the last."""
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
    for key, hint in hints.items():
        # __required_keys__ does not support postponed annotations.
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
            raise ValueError(f"{join_location(location, key)} is not a known key")
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
