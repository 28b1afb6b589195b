"""Complete and check a run's composed config with what it was composed from: files and overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from growlm.config.composing.chosen_groups import apply_chosen_groups
from growlm.config.composing.config_layers import (
    ConfigLayer,
    find_file,
    has_own_files,
    list_config_folders,
    parse_overrides,
    read_file_layers,
)
from growlm.config.composing.extended_lengths import (
    check_added_lengths,
    check_no_added_lengths,
)
from growlm.config.composing.inert_settings import find_inert_settings
from growlm.config.composing.other_choices import clear_other_choices
from growlm.config.composing.phase_overrides import check_phase_names, replace_phase_lengths
from growlm.config.composing.unread_files import (
    UNREADABLE,
    check_optional_groups,
    explain_unread_file,
)
from growlm.config.composing.unused_settings import (
    find_unused_growth_settings,
    find_unused_interval,
)
from growlm.config.config_dir import ROOT_CONFIG_NAME, get_config_folder
from growlm.config.operator_schema import check_grow_list
from growlm.config.schema import RunConfig
from growlm.runtime.errors import UserError

SCHEMA_NAME = "run_schema"
"""Name under which Hydra knows the schema of a run's config."""
PACKAGES = {"recipe": "growth"}
"""Package of a group's files, if they set neither keys of the root nor those below the group's own name."""

_PARTS = {"phase_plan": "phases.NAME", "recipe": "growth"}
_UNLISTED = re.compile(r"Could not override '([^'@]+)'\.\s+No match in the defaults list")


def complete_phases(
    composed: DictConfig, overrides: Sequence[str], config_name: str | None = ROOT_CONFIG_NAME
) -> None:
    """Keep the length of each phase that was set last, and check that overrides name phases of the plan.

    Settings of files that the command line's choices leave unread are cleared. Hydra must be initialized.

    Args:
        composed: Composed config; changed in place.
        overrides: Overrides that it was composed with.
        config_name: Name of the primary config.

    Raises:
        UserError: If a length is set twice in one place, or an override names a phase, or an experiment, that
            does not exist.
    """
    parsed = parse_overrides(overrides)
    check_optional_groups(parsed)

    @cache
    def read_files() -> list[ConfigLayer]:
        return read_file_layers(config_name, parsed, get_config_folder())

    replace_phase_lengths(composed, parsed, read_files)
    if has_own_files(parsed):
        apply_chosen_groups(composed, parsed, read_files, SCHEMA_NAME)
    clear_other_choices(composed, parsed, read_files)
    if _has_own_plan(composed):
        check_no_added_lengths(parsed, "name the run, resume=RUN_DIR, or leave out the plus")
        check_phase_names(composed, parsed, read_files)
    check_added_lengths(parsed)


def find_unused_settings(
    composed: DictConfig, overrides: Sequence[str], config_name: str | None = ROOT_CONFIG_NAME
) -> list[UserError]:
    """Return an error for each setting that the user set and that nothing in the config reads.

    Takes the arguments of `complete_phases`.
    """
    if not _has_own_plan(composed):
        return []
    parsed = parse_overrides(overrides)
    files: list[ConfigLayer] = []
    if has_own_files(parsed):
        files = read_file_layers(config_name, parsed, get_config_folder())
    return [
        *find_unused_growth_settings(composed, parsed, files),
        *find_inert_settings(composed, parsed, files),
        *find_unused_interval(composed, parsed),
    ]


def explain_composition_error(
    error: Exception, overrides: Sequence[str], config_name: str | None = ROOT_CONFIG_NAME
) -> UserError | None:
    """Return what is wrong with overrides that Hydra cannot compose, where that is not what Hydra says; else None.

    Hydra must be initialized.

    Args:
        error: What Hydra raised.
        overrides: Overrides of the command line.
        config_name: Name of the primary config.
    """
    with suppress(HydraException, OmegaConfBaseException, *UNREADABLE):
        parsed = parse_overrides(overrides)
        if (unread := explain_unread_file(error, list_config_folders(parsed))) is not None:
            return unread
        if (unlisted := _explain_unlisted_group(error, parsed, config_name)) is not None:
            return unlisted
        for override in parsed:
            if override.key_or_group.rpartition(".")[2] == "grow":
                try:
                    check_grow_list(override.key_or_group, override.value())
                except UserError as wrong_list:
                    return wrong_list
        layers = read_file_layers(config_name, parsed, get_config_folder())
        for layer in layers:
            if (misplaced := _check_package(layer)) is not None:
                return misplaced
        try:
            check_phase_names(OmegaConf.create(), parsed, lambda: layers)
        except UserError as wrong_name:
            return wrong_name
    return None


def _explain_unlisted_group(
    error: Exception, overrides: Sequence[Override], config_name: str | None
) -> UserError | None:
    """Return an error if an override chooses from a group that the primary config does not list."""
    match = _UNLISTED.match(str(error))
    chosen = [o for o in overrides if match is not None and o.key_or_group == match[1]]
    if not chosen or not (get_config_folder() / chosen[0].key_or_group).is_dir():
        return None
    group, file = chosen[0].key_or_group, find_file(f"{config_name}.yaml", overrides)
    keys = group if group in RunConfig.__dataclass_fields__ else _PARTS.get(group)
    instead = "single keys" if keys is None else f"{keys}.KEY=..."
    lacks = f"has no {group} in its defaults list"
    if file is not None and "defaults" not in OmegaConf.load(file):
        lacks = "has no defaults list"
    reason = f"{file or config_name} {lacks}, so {group}= cannot be chosen; write {instead}"
    return UserError(group, str(chosen[0].input_line).partition("=")[2], reason)


def _check_package(layer: ConfigLayer) -> UserError | None:
    """Return an error if a file's settings lie below a key that a run's config does not have."""
    key = layer.package.partition(".")[0]
    if not key or key == "hydra" or key in RunConfig.__dataclass_fields__:
        return None
    group, _, option = layer.name.rpartition("/")
    package = PACKAGES.get(group, "_global_")
    reason = (
        f"{layer.file} needs the line '# @package {package}' at its top; without it, its settings are "
        f"read as {layer.package}.KEY, and there are no such keys"
    )
    return UserError(group, option, reason)


def _has_own_plan(composed: DictConfig) -> bool:
    """Return whether the composed plan is the one to run, and not that of a run to resume."""
    return composed.get("resume") in (None, "auto")
