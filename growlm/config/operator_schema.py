"""Read `grow` lists: entries that name an operator, with the settings that its registration declares.

OmegaConf checks keys and types against dataclasses. Those of an entry and of each operator's settings are made
from the operators that are registered; a config that has been read holds the operators themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from growlm.config.command_schema import GrowCommand
from growlm.config.schema import DataConfig, OperatorEntry, PhaseConfig, RunConfig
from growlm.growth.operators.plain_fields import get_field_types
from growlm.growth.operators.registry import (
    available_operators,
    explain_unknown_operator,
    get_operator_class,
)
from growlm.runtime.errors import UserError

ConfigT = TypeVar("ConfigT")

EXAMPLE_ENTRY = "{widen: {scale_factor: 2}}"
MUST_BE_ENTRY = f"must be an operator with its settings, such as {EXAMPLE_ENTRY}"


@dataclass
class ComposedDataConfig(DataConfig):
    """The schema of group `data` while Hydra composes: overrides may add evaluation sets."""

    evaluation_sets: dict[str, Any] = field(default_factory=dict)


@dataclass
class ComposedConfig(RunConfig):
    """The schema while Hydra composes; `to_run_config` checks what it leaves open.

    Files may hold the flat model of growlm 0.1, and overrides may add phases and evaluation sets.
    """

    data: ComposedDataConfig = field(default_factory=ComposedDataConfig)
    model: dict[str, Any] = field(default_factory=dict)  # type: ignore[assignment]
    phases: dict[str, Any] = field(default_factory=dict)


_PLACES = {
    **{each.name: f"phases.NAME.{each.name}" for each in dataclasses.fields(PhaseConfig)},
    "learning_rate": "phases.NAME.lr",
    "max_steps": "phases.NAME.steps",
    "gradient_accumulation": "phases.NAME.accumulate",
    "gradient_accumulation_steps": "phases.NAME.accumulate",
    "accumulate_grad_batches": "phases.NAME.accumulate",
    "gradient_clip_val": "optimizer.gradient_clip",
    "max_grad_norm": "optimizer.gradient_clip",
    "weight_decay": "optimizer.weight_decay",
    "block_size": "sequence_length",
    "max_length": "sequence_length",
    "output_dir": "run_dir",
}
"""Where settings are that are looked for elsewhere: those of a phase, and other programs' names."""
_SCHEMAS = (RunConfig, PhaseConfig, GrowCommand)
_TYPED = "WithOperators"
_SETTINGS = "_settings"


def operator_entry_type() -> type[Any]:
    """Return the dataclass of an entry: one optional field for each operator, of which one is set."""
    operators = available_operators().values()
    return _make_entry_type(tuple((each.name, each.operator_class) for each in operators))


@lru_cache(maxsize=1)
def _make_entry_type(operators: tuple[tuple[str, type[Any]], ...]) -> type[Any]:
    fields: list[Any] = []
    for name, operator_class in operators:
        optional: Any = _make_settings_type(name, operator_class) | None
        fields.append((name, optional, field(default=None)))
    return _make_type("OperatorEntry", fields)


def _make_settings_type(name: str, operator_class: type[Any]) -> Any:
    """Return a dataclass of an operator's settings, which OmegaConf may merge even if the operator is frozen."""
    hints = get_field_types(operator_class)
    return _make_type(
        f"{name}{_SETTINGS}",
        [
            (
                each.name,
                hints[each.name],
                field(default=each.default, default_factory=each.default_factory, kw_only=True),
            )
            for each in dataclasses.fields(operator_class)
        ],
    )


def with_operator_types(schema: type[Any]) -> type[Any]:
    """Return a schema whose `grow` lists have typed entries; one without such lists is returned as it is."""
    if schema not in _SCHEMAS:
        return schema
    key: Any = (schema, operator_entry_type())
    return _make_typed_schema(*key)


@lru_cache(maxsize=len(_SCHEMAS))
def _make_typed_schema(schema: Any, entry_type: Any) -> type[Any]:
    name, hint = "grow", GenericAlias(list, (entry_type,))
    if issubclass(schema, RunConfig):
        name, hint = "phases", GenericAlias(dict, (str, with_operator_types(PhaseConfig)))
    old = schema.__dataclass_fields__[name]
    new = field(default=old.default, default_factory=old.default_factory)
    return _make_type(f"{schema.__name__}{_TYPED}", [(name, hint, new)], (schema,))


def _make_type(name: str, fields: Iterable[Any], bases: tuple[type[Any], ...] = ()) -> type[Any]:
    """Make a dataclass that pickle finds in this module: Hydra's launchers send schemas to processes."""
    made = dataclasses.make_dataclass(name, fields, bases=bases)
    made.__module__ = __name__
    globals()[name] = made
    return made


def __getattr__(name: str) -> Any:
    """Make the types in a process that unpickles one of them."""
    if name == "OperatorEntry" or name.endswith((_SETTINGS, _TYPED)):
        for schema in _SCHEMAS:
            with_operator_types(schema)
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_grow_list(path: str, entries: Any) -> None:
    """Check that a `grow` setting is a list, and not an operator alone.

    Raises:
        UserError: If it is not; says what to write.
    """
    if entries is None or isinstance(entries, list) or "${" in str(entries):
        return
    if isinstance(entries, dict):
        inside = ", ".join(f"{{{name}: ...}}" for name in entries)
        raise UserError(path, entries, f"must be a list of operators, in brackets: [{inside}]")
    raise UserError(path, entries, f"must be a list of operators, such as [{_spell_out(entries)}]")


def _spell_out(name: Any) -> str:
    """Return an entry as it is written, with an operator's name if it is one."""
    return f"{{{name}: {{}}}}" if name in available_operators() else EXAMPLE_ENTRY


def check_grow_lists(content: dict[str, Any]) -> None:
    """Check names, settings and types in the `grow` lists of a run's config: OmegaConf's errors have no full key.

    Args:
        content: Config in plain mappings and lists; interpolations are checked once they are resolved.

    Raises:
        UserError: For the first that is wrong.
    """
    phases = content.get("phases")
    for name, phase in phases.items() if isinstance(phases, dict) else ():
        entries = phase.get("grow") if isinstance(phase, dict) else None
        check_grow_list(f"phases.{name}.grow", entries)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            _check_entry(f"phases.{name}.grow.{index}", entry)


def _check_entry(path: str, entry: Any) -> None:
    settings_types = get_type_hints(operator_entry_type())
    if not isinstance(entry, dict):
        _check_reference(path, entry)
        return
    for name, settings in entry.items():
        key = f"{path}.{name}"
        if name not in settings_types:
            raise UserError(key, settings, explain_unknown_operator(str(name)))
        if isinstance(settings, dict):
            _check_settings(key, get_args(settings_types[name])[0], settings)
        elif settings is not None:
            _check_reference(key, settings)


def _check_settings(path: str, settings_type: Any, settings: dict[str, Any]) -> None:
    node: Any = OmegaConf.structured(settings_type)
    known = list(settings_type.__dataclass_fields__)
    for key, value in settings.items():
        if key not in known:
            reason = explain_unknown_key(settings_type, str(key), known)
            raise UserError(f"{path}.{key}", value, reason)
        try:
            node[key] = value
        except OmegaConfBaseException as error:
            reason = str(getattr(error, "msg", None) or error).splitlines()[0]
            raise UserError(f"{path}.{key}", value, reason) from error


def _check_reference(path: str, value: Any) -> None:
    """Check that a value in the place of a mapping refers to one."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        return
    if isinstance(value, str) and value in available_operators():
        raise UserError(path, value, f"must have settings, which may be empty: {_spell_out(value)}")
    raise UserError(path, value, MUST_BE_ENTRY)


def with_operators(config: Any, schema: type[ConfigT], prefix: str = "") -> ConfigT:
    """Return a config of the plain schema, whose `grow` lists hold operators instead of their settings.

    Args:
        config: Config of the schema `with_operator_types(schema)`.
        schema: Plain schema.
        prefix: Key of the config, with a dot behind it.

    Raises:
        UserError: If an operator does not accept its settings; names the full key.
    """
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
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
    if schema is operator_entry_type():
        return explain_unknown_operator(key)
    is_of_run = isinstance(schema, type) and (
        issubclass(schema, RunConfig | PhaseConfig) or schema.__module__ == RunConfig.__module__
    )
    if is_of_run and (elsewhere := _PLACES.get(key)):
        return f"there is no such key; set {elsewhere}"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"there is no such key; {hint}"
