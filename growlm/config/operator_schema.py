"""Read `grow` lists: entries that name an operator, with the settings that its registration declares.

OmegaConf checks keys and types against dataclasses. Those of an entry and of each operator's settings are made
from the operators that are registered; a config that has been read holds the operators themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from growlm.config.schema import OperatorEntry, PhaseConfig
from growlm.growth.operators.plain_fields import get_field_types
from growlm.growth.operators.registry import (
    available_operators,
    explain_unknown_operator,
    get_operator_class,
)
from growlm.runtime.errors import UserError

ConfigT = TypeVar("ConfigT")


def operator_entry_type() -> type[Any]:
    """Return the dataclass of an entry: one optional field for each operator, of which one is set."""
    operators = available_operators().values()
    return _make_entry_type(tuple((each.name, each.operator_class) for each in operators))


@lru_cache(maxsize=1)
def _make_entry_type(operators: tuple[tuple[str, type[Any]], ...]) -> type[Any]:
    fields: list[Any] = []
    for name, operator_class in operators:
        optional: Any = _make_settings_type(operator_class) | None
        fields.append((name, optional, dataclasses.field(default=None)))
    return dataclasses.make_dataclass(
        "OperatorEntry", fields, namespace={"is_operator_entry": True}
    )


def _make_settings_type(operator_class: type[Any]) -> Any:
    """Return a dataclass of an operator's settings, which OmegaConf may merge even if the operator is frozen."""
    hints = get_field_types(operator_class)
    fields: list[Any] = [
        (
            field.name,
            hints[field.name],
            dataclasses.field(
                default=field.default, default_factory=field.default_factory, kw_only=True
            ),
        )
        for field in dataclasses.fields(operator_class)
    ]
    return dataclasses.make_dataclass(operator_class.__name__, fields)


def with_operator_types(schema: type[Any]) -> type[Any]:
    """Return a schema whose `grow` lists have typed entries; one without such lists is returned as it is."""
    names = {field.name: field for field in dataclasses.fields(schema)}
    changed: dict[str, Any] = {}
    if "grow" in names:
        changed["grow"] = list[operator_entry_type()]  # type: ignore[misc]
    if "phases" in names:
        changed["phases"] = dict[str, with_operator_types(PhaseConfig)]  # type: ignore[misc]
    fields: list[Any] = [
        (
            name,
            hint,
            dataclasses.field(
                default=names[name].default, default_factory=names[name].default_factory
            ),
        )
        for name, hint in changed.items()
    ]
    return (
        dataclasses.make_dataclass(schema.__name__, fields, bases=(schema,)) if fields else schema
    )


def with_operators(config: Any, schema: type[ConfigT], prefix: str = "") -> ConfigT:
    """Return a config of the plain schema, whose `grow` lists hold operators instead of their settings.

    Args:
        config: Config of the schema `with_operator_types(schema)`.
        schema: Plain schema.
        prefix: Key of the config, with a dot behind it.

    Raises:
        UserError: If an operator does not accept its settings; names the full key.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if "grow" in values:
        values["grow"] = [
            _read_entry(entry, f"{prefix}grow.{index}")
            for index, entry in enumerate(values["grow"])
        ]
    if "phases" in values:
        values["phases"] = {
            name: with_operators(phase, PhaseConfig, f"{prefix}phases.{name}.")
            for name, phase in values["phases"].items()
        }
    return schema(**values)


def _read_entry(entry: Any, path: str) -> OperatorEntry:
    """Return the operators that an entry sets; validation checks that it is one."""
    operators = {}
    for name, settings in vars(entry).items():
        if settings is None:
            continue
        try:
            operators[name] = get_operator_class(name)(**vars(settings))
        except UserError as error:
            raise error.with_key_prefix(f"{path}.{name}") from error
        except (TypeError, ValueError) as error:  # of the class's own checks
            raise UserError(f"{path}.{name}", vars(settings), str(error)) from error
    return operators


def explain_unknown_key(schema: Any, key: str, known: Sequence[str]) -> str:
    """Return why a schema has no such key, with the nearest one that it has."""
    if getattr(schema, "is_operator_entry", False):
        return explain_unknown_operator(key)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"there is no such key; {hint}"
