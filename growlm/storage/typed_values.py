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

SHOWN = 40
"""Characters of a value or key that a message repeats."""
NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
Check = Callable[[Any], str | None]
"""Returns what a value must be, if it is not."""


def at_least(minimum: float) -> Check:
    """Make the check of a smallest value, for `Annotated`."""
    return lambda value: None if value >= minimum else f"must be at least {minimum}"


def positive(value: float) -> str | None:
    """Check that a number is finite and above 0."""
    return None if 0 < value < math.inf else "must be a finite number above 0"


Count = Annotated[int, at_least(0)]


def typed(kind: Any, value: Any, place: str = "") -> Any:
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
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = typed(arguments[0], value, place)
        if wanted := arguments[1](found):
            raise wrong(place, wanted, value)
        return found
    if origin is NotRequired:
        return typed(arguments[0], value, place)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, place)
    if origin is list:
        items = _checked(list, value, place)
        return [typed(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        pairs = _checked(dict, value, place).items()
        return {
            _checked(str, key, place): typed(arguments[1], item, inside(place, key))
            for key, item in pairs
        }
    if is_typeddict(kind):
        return _typed_dict(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place)
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = [member.value for member in kind]
        if value not in known:
            raise wrong(place, f"must be one of {', '.join(map(str, known))}", value)
        return kind(value)
    return _checked(kind, value, place)


def inside(place: str, key: object) -> str:
    """Return the place of a key's value in the mapping at a place."""
    name = shortened(str(key))
    return f"{place}.{name}" if place else name


def shortened(text: str) -> str:
    """Return as much of a text as a message repeats."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def wrong(place: str, wanted: str, value: Any) -> ValueError:
    """Return the error about a value."""
    return ValueError(f"{place or 'its content'} {wanted}, and is {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return NAMES[type(value)] if value else ("[]" if isinstance(value, list) else "{}")
    return shortened(repr(value))


def _checked(kind: type, value: Any, place: str) -> Any:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise wrong(place, f"must be {NAMES.get(kind, kind.__name__)}", value)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    """The first of several types that the value is of; of one type or null, the error is about the type."""
    others = [kind for kind in kinds if kind is not NoneType]
    if value is None and len(others) < len(kinds):
        return None
    for kind in others[:-1]:
        try:
            return typed(kind, value, place)
        except ValueError:
            continue
    return typed(others[-1], value, place)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _typed_dict(kind: Any, value: Any, place: str) -> dict[str, Any]:
    content = _checked(dict, value, place)
    hints = _hints(kind)
    for (
        key,
        hint,
    ) in hints.items():  # not by __required_keys__, which no postponed annotation gets into
        is_required = kind.__total__ and get_origin(hint) is not NotRequired
        if is_required and key not in content:
            raise ValueError(f"{inside(place, key)} is missing")
    known = {k: typed(hints[k], v, inside(place, k)) for k, v in content.items() if k in hints}
    return {**content, **known}


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    content = _checked(dict, value, place)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in content:
        if key not in fields:
            raise ValueError(f"{inside(place, key)} is not known")
    for name, field in fields.items():
        is_optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in content and not is_optional:
            raise ValueError(f"{inside(place, name)} is missing")
    hints = _hints(kind)
    return kind(**{k: typed(hints[k], v, inside(place, k)) for k, v in content.items()})
