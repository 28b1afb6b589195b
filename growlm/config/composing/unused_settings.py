"""Find growth settings that a user sets although no phase of the plan refers to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from growlm.config.composing.config_layers import ConfigLayer, read_command_line
from growlm.config.flatten import flatten_config
from growlm.config.schema import GrowthConfig, RunConfig
from growlm.runtime.errors import UserError

RECIPE_KEYS = ("new_channels", "new_blocks")
"""The settings below `growth` that the group `recipe` sets."""
_GROWTH_OF_PHASES = re.compile(r"phases(\.[^.]+(\.grow(\..+)?)?)?")
"""Pattern of the keys that set, or remove, how phases grow."""
_REFERENCE = re.compile(r"\bgrowth(?:\.|\[['\"]?)(\w+)")


def find_unused_growth_settings(
    config: DictConfig, overrides: Sequence[Override], files: Sequence[ConfigLayer]
) -> list[UserError]:
    """Return an error for each growth setting that was asked for and that nothing in the config refers to.

    Args:
        config: Composed config, with its interpolations.
        overrides: Overrides of the command line.
        files: Settings of each file. Those that growlm ships are defaults and ask for nothing; neither does a
            run's saved config, which holds all settings. If an override may have removed what refers to a
            file's setting, none of the files is at fault.
    """
    used = _find_used_keys(config)
    errors = []
    command_line = read_command_line(overrides)
    if (recipe := command_line.settings.get("recipe")) is not None and not used & {*RECIPE_KEYS}:
        errors.append(_unused("recipe", recipe, command_line))
    if any(_GROWTH_OF_PHASES.fullmatch(override.key_or_group) for override in overrides):
        files = []
    for layer in (command_line, *files):
        growth = layer.settings.get("growth")
        if layer.is_own and isinstance(growth, dict) and not _is_complete(layer):
            errors += [
                _unused(f"growth.{key}", value, layer)
                for key, value in growth.items()
                if key in GrowthConfig.__dataclass_fields__ and key not in used
            ]
    return errors


def find_unused_interval(config: DictConfig, overrides: Sequence[Override]) -> list[UserError]:
    """Return an error if the command line says how often to hold a document out of a run that holds none out.

    Takes the first two arguments of `find_unused_growth_settings`.
    """
    key = "data.validation_every"
    given = [o.value() for o in overrides if o.key_or_group == key and not o.is_delete()]
    text = OmegaConf.select(config, "data.validation", throw_on_missing=False)
    if OmegaConf.select(config, "data._target_", throw_on_missing=False) is not None:
        return []  # an argument of the user's own class
    if not given or text is None or all(text.get(each) in (None, {}) for each in text):
        return []
    reason = "nothing is held out where data.validation names a text; leave out one of the two"
    return [UserError(key, given[-1], reason)]


def _unused(key: str, value: Any, layer: ConfigLayer) -> UserError:
    where = "" if layer.file is None else f" (set in {layer.file})"
    return UserError(key, value, f"no phase of this plan uses it{where}")


def _find_used_keys(config: DictConfig) -> set[str]:
    used: set[str] = set()
    for _, value in flatten_config(OmegaConf.to_container(config)):
        text = str(value)
        if "${" in text:
            used.update(_REFERENCE.findall(text))
    return used


def _is_complete(layer: ConfigLayer) -> bool:
    return all(field.name in layer.settings for field in fields(RunConfig))
