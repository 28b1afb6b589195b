"""Let a config group hold a class of the user's own: `optimizer._target_=my_package.Mine optimizer.rho=0.1`.

While Hydra composes, the settings of a group are missing (`???`) until a file or the command line sets them. The
files of the shipped entries set all; with the entry `own`, what is set is an argument of the class. Only
`KEPT_SETTINGS` stay settings of growlm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from growlm.config.schema import (
    OWN,
    DataConfig,
    LoggerConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
)
from growlm.runtime.errors import UserError

GROUP_TYPES: dict[str, type[Any]] = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "logger": LoggerConfig,
}
"""Groups that may hold one class of the user's own."""
KEPT_SETTINGS = {
    "optimizer": ("name", "weight_decay", "gradient_clip"),
    "schedule": ("name", "warmup_steps"),
    "data": ("source", "document_mask", "validation", "evaluation_sets"),
    "tokenizer": ("name",),
    "logger": ("name", "extra"),
}
"""Settings that growlm itself reads beside a class, the first of which names the entry."""
OPEN_MAPPINGS = ("callbacks.extra", "logger.extra", "trainer.extra")
"""Mappings whose entries the user names."""
TARGET, ARGUMENTS, MISSING = "_target_", "arguments", "???"


def choose_own_entries(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with `optimizer=own` added if `optimizer._target_` is set and no entry is chosen.

    Raises:
        UserError: If `trust` is not a list.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "trust" and value and value[0] not in "[$":
            raise UserError(key, value, f"must be a list of packages: trust=[{value}]")
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    chosen = [
        f"{group}={OWN}"
        for group in GROUP_TYPES
        if f"{group}.{TARGET}" in keys and group not in keys
    ]
    return [*overrides, *chosen]


def spell_out_own_entries(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with `optimizer=own` as `optimizer.name=own`, which a complete config can take."""
    names = {f"{group}={OWN}": f"{group}.{kept[0]}={OWN}" for group, kept in KEPT_SETTINGS.items()}
    return [names.get(override, override) for override in overrides]


def list_class_settings(group: str) -> list[str]:
    """Return the settings of a group that are arguments of a class of the user's own, if that is chosen."""
    kept = (TARGET, ARGUMENTS, *KEPT_SETTINGS[group])
    return [each.name for each in fields(GROUP_TYPES[group]) if each.name not in kept]


def collect_arguments(content: dict[str, Any]) -> None:
    """Move the keys that the user set beside a group's `_target_` into its `arguments`, in place.

    What is still missing takes the default of the schema, or None where that is allowed in an entry `own`.

    Args:
        content: Config as Hydra composed it; the `config.yaml` of a run has its arguments in place already.

    Raises:
        UserError: If another entry than `own` has a class.
    """
    for group, group_type in GROUP_TYPES.items():
        settings = content.get(group)
        if not isinstance(settings, dict):
            continue
        entry = settings.get(KEPT_SETTINGS[group][0])
        if settings.get(TARGET) is not None and entry != OWN:
            raise _entry_error(group, entry, settings[TARGET])
        is_own = entry == OWN
        optional = {each.name for each in fields(group_type) if "None" in str(each.type)}
        known = list_class_settings(group)
        arguments = {}
        for key in list(settings):
            if key in (TARGET, ARGUMENTS, *KEPT_SETTINGS[group]) or not (is_own or key in known):
                continue
            if settings[key] != MISSING and not is_own:
                continue
            value = settings.pop(key)
            if value != MISSING:
                arguments[key] = value
            if is_own and key in optional:
                settings[key] = None
        if is_own:
            settings[ARGUMENTS] = settings.get(ARGUMENTS, {}) | arguments


def locate_key(key: str, entries: dict[str, str]) -> str:
    """Return where a run's own `config.yaml` keeps a key: `optimizer.arguments.rho` for `optimizer.rho`.

    Args:
        key: Key as on the command line.
        entries: Name of the entry of each group.
    """
    group, _, rest = key.partition(".")
    kept = (TARGET, ARGUMENTS, *KEPT_SETTINGS.get(group, ()))
    if entries.get(group) == OWN and rest and rest.partition(".")[0] not in kept:
        return f"{group}.{ARGUMENTS}.{rest}"
    return key


def get_entries(config: RunConfig) -> dict[str, str]:
    """Return the entry of each group that may hold a class of the user's own."""
    return {
        group: getattr(getattr(config, group), kept[0]) for group, kept in KEPT_SETTINGS.items()
    }


def get_spec(config: RunConfig, group: str) -> dict[str, Any]:
    """Return the class of the user's own in a group, with its arguments, as `instantiate_target` takes it."""
    settings = getattr(config, group)
    return {TARGET: settings._target_, **settings.arguments}


def check_own_classes(config: RunConfig) -> None:
    """Check that exactly the entries `own` name a class.

    Raises:
        UserError: If another entry does, or one of them does not.
    """
    for group, entry in get_entries(config).items():
        target = getattr(config, group)._target_
        if entry == OWN and not target:
            reason = f"must be given with {group}={OWN}: the class or function to use, MODULE.CLASS"
            raise UserError(f"{group}.{TARGET}", target, reason)
        if entry != OWN and target is not None:
            raise _entry_error(group, entry, target)


def _entry_error(group: str, entry: Any, target: Any) -> UserError:
    reason = (
        f"is for the entry {group}={OWN}, but {group}={entry} is chosen; leave out {group}={entry}, or in a "
        f"file of your own, write `defaults: [{OWN}]` into one of the group, or `override /{group}: {OWN}` into "
        "a plan's"
    )
    return UserError(f"{group}.{TARGET}", target, reason)


def find_targets(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and value of every `_target_` in a nested config, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            full = f"{key}.{name}" if key else str(name)
            if name == TARGET:
                if item is not None:
                    yield full, str(item)
            else:
                yield from find_targets(item, full)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from find_targets(item, f"{key}.{index}")
