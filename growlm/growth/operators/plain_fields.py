"""Check that an operator is plain data: fields of numbers, strings, lists and None, as JSON and YAML hold them.

Memory, disk and shards then grow a model from the same settings. What has to be measured first, such as the load
of experts, is measured beforehand and stored in the operator as a list.
"""

from __future__ import annotations

import dataclasses
import math
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

PLAIN_TYPES = "int, float, bool, str, None or lists of these"
_SCALARS = (bool, int, float, str)


def check_field_types(operator_class: type[Any]) -> None:
    """Check the declared types of an operator's fields.

    Raises:
        TypeError: For the first field whose type is not plain, or that is not an argument of the constructor.
    """
    settings = {field.name: field for field in dataclasses.fields(operator_class)}
    for name, hint in get_field_types(operator_class).items():
        where = f"{operator_class.__qualname__}.{name}"
        if name not in settings or not settings[name].init:
            reason = "every field is a setting: an argument of the constructor, and an attribute"
            raise TypeError(f"{where}: {reason}")
        if not _is_plain_type(hint):
            raise TypeError(
                f"{where}: {format_type(hint)} is not plain data; a setting is of {PLAIN_TYPES}. What has "
                "to be measured is measured beforehand and stored as a list; a choice is a str with limits"
            )


def get_field_types(operator_class: type[Any]) -> dict[str, Any]:
    """Return the declared type of every field of a dataclass, by name."""
    hints = get_type_hints(operator_class)
    declared = {name: hints[name] for name in operator_class.__dataclass_fields__}
    return {
        name: hint
        for name, hint in declared.items()
        if hint is not ClassVar and get_origin(hint) is not ClassVar
    }


def check_field_values(operator: Any) -> None:
    """Check the values of an operator's fields.

    Raises:
        TypeError: For the first field whose value is not plain.
    """
    for field in dataclasses.fields(operator):
        value = getattr(operator, field.name)
        if not _is_plain_value(value):
            shown = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            if isinstance(value, float | list):
                shown = repr(value)[:80]
            raise TypeError(
                f"{type(operator).__qualname__}.{field.name}: {shown} is not plain data; a setting is of "
                f"{PLAIN_TYPES}, and finite (tensor.tolist() makes a list)"
            )


def format_type(hint: Any) -> str:
    """Return a type as source code has it."""
    return hint.__name__ if isinstance(hint, type) else str(hint)


def has_type(value: Any, hint: Any) -> bool:
    """Return whether a value is of a plain type; whole numbers are floats, too."""
    if get_origin(hint) in (Union, UnionType):
        return any(has_type(value, each) for each in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(has_type(each, *get_args(hint)) for each in value)
    return type(value) is hint or (hint is float and type(value) is int)


def _is_plain_type(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        others = [each for each in arguments if each is not type(None)]
        # OmegaConf, which reads the settings, knows unions of scalars only.
        return _is_plain_type(others[0]) if len(others) == 1 else set(others) <= set(_SCALARS)
    if origin is list:
        return _is_plain_type(arguments[0])
    return hint in _SCALARS


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain_value, value))
    return value is None or (
        isinstance(value, _SCALARS) and (not isinstance(value, float) or math.isfinite(value))
    )
