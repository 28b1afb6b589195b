"""Declare limits next to dataclass fields and check them all in one call.

`field(default=8, metadata=limits(minimum=1))` declares a limit. `check_limits(instance)` checks a dataclass and
all dataclasses inside it, and raises `UserError` with the full path of the first field that is out of bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from growlm.runtime.errors import UserError


def limits(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return field metadata that declares limits; for a list, they apply to its items.

    Args:
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
        choices: Allowed values; excludes the other limits.
    """
    return {"limits": (minimum, maximum, above, below, choices)}


def check_limits(instance: Any, prefix: str = "") -> None:
    """Check every declared limit of a dataclass tree.

    Raises:
        UserError: For the first field outside its limits.
    """
    for field in dataclasses.fields(instance):
        path = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(instance, field.name)
        if "limits" in field.metadata:
            for item in value if isinstance(value, list | tuple) else [value]:
                _check_value(path, item, *field.metadata["limits"])
        _check_nested(path, value)


def _check_nested(path: str, value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_limits(value, path)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_nested(f"{path}.{name}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_nested(f"{path}.{index}", item)


def _check_value(
    path: str,
    value: Any,
    minimum: float | None,
    maximum: float | None,
    above: float | None,
    below: float | None,
    choices: Sequence[str] | None,
) -> None:
    if value is None:
        return
    if choices is not None:
        if value not in choices:
            raise UserError(path, value, f"must be one of {', '.join(choices)}")
        return
    rules = []
    if minimum is not None:
        rules.append((value >= minimum, f"at least {minimum}"))
    if above is not None:
        rules.append((value > above, f"greater than {above}"))
    if maximum is not None:
        rules.append((value <= maximum, f"at most {maximum}"))
    if below is not None:
        rules.append((value < below, f"less than {below}"))
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not all(holds for holds, _ in rules):
        wanted = " and ".join(words for _, words in rules)
        raise UserError(path, value, f"must be {wanted}" + ("" if finite else ", and finite"))
