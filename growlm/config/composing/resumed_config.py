"""Load the config that a run began with, and apply the overrides of a resume to it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from growlm.checkpoint.run_record import CONFIG_FILE, read_run_record
from growlm.config.composing.extended_lengths import (
    LENGTH_PATTERN,
    check_no_added_lengths,
    resolve_length,
)
from growlm.config.composing.inert_settings import check_inert_settings
from growlm.config.composing.phase_overrides import LENGTH_KEYS
from growlm.config.literal import escape_prompt_interpolations
from growlm.config.load import (
    get_config_folder,
    make_config_node,
    to_run_config,
    to_valid_run_config,
    translate_overrides,
)
from growlm.config.own_classes import (
    GROUP_TYPES,
    KEPT_SETTINGS,
    TARGET,
    find_targets,
    get_entries,
    locate_key,
    spell_out_own_entries,
)
from growlm.config.schema import OWN, RunConfig
from growlm.config.trusted_targets import check_targets_of_file
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import read_yaml

AUTO = "auto"
CHANGEABLE_GROUPS = ("callbacks", "cluster", "experiment", "logger", "trainer")
"""Groups with settings that a resume can change; a run keeps what the others set."""


def resolve_resume_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config that `resume=RUN_DIR` requests: the run's saved settings plus the given overrides.

    Args:
        config: Config composed by Hydra.
        overrides: Overrides from the command line. If one chooses a config group, such as
            `phase_plan=four_stage`, the composed config is returned unchanged.

    Raises:
        UserError: If the run does not exist, or its config names a class that the command does not trust.
    """
    if config.resume in (None, AUTO):
        return config
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(spell_out_own_entries(translate_overrides(overrides)))
    groups = {path.name for path in get_config_folder().iterdir() if path.is_dir()}
    if chosen := [o for o in parsed if o.key_or_group in groups or o.type is OverrideType.DEL]:
        needs = f"{_compose_anew(chosen)}: {_list_instead(chosen)}"
        check_no_added_lengths(parsed, needs)
        return config
    path = Path(config.resume)
    loaded = load_saved_config(path)
    saved = make_config_node(escape_prompt_interpolations(loaded))
    entries = get_entries(loaded) | {
        group: OWN
        for group in GROUP_TYPES
        if any(o.key_or_group == f"{group}.{TARGET}" for o in parsed)
    }
    named = set()
    for override in parsed:
        if not override.key_or_group.startswith("hydra."):
            key = locate_key(override.key_or_group, entries)
            value = resolve_length(override, override.value(), loaded)
            written = str(override.input_line).partition("=")[2].strip()
            _check_phase(key, written, list(loaded.phases))
            _check_evaluation_set(key, value, list(loaded.data.evaluation_sets))
            if (length := LENGTH_PATTERN.fullmatch(key)) is not None:
                for other in LENGTH_KEYS:  # one length replaces another, as in a new run
                    OmegaConf.update(saved, f"phases.{length[1]}.{other}", None)
            OmegaConf.update(saved, key, value, force_add=False)
            named |= {target for target, _ in find_targets(value, key)} | {key}
    check_inert_settings(saved, parsed)
    resolved = replace(to_run_config(saved), resume=config.resume)
    from_file = [target for target in find_targets(asdict(resolved)) if target[0] not in named]
    check_targets_of_file(from_file, resolved.trust)
    return resolved


def explain_chosen_groups(error: UserError, overrides: Sequence[str]) -> UserError:
    """Return what to write instead of a choice from a config group, where that made a run's settings differ.

    Args:
        error: Error about settings that differ from those that the run began with.
        overrides: Overrides from the command line.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = {path.name for path in get_config_folder().iterdir() if path.is_dir()}
    chosen = [o for o in parsed if o.key_or_group in groups or o.type is OverrideType.DEL]
    if not chosen:
        return error
    instead = _list_instead(chosen)
    reason = (
        f"{_compose_anew(chosen)}. {instead[0].upper()}{instead[1:]}, or repeat the whole command of the run "
        f"({error.reason})"
    )
    return UserError(error.key, error.value, reason)


def _compose_anew(chosen: Sequence[Override]) -> str:
    lines = " ".join(str(override.input_line) for override in chosen)
    return f"{lines} composes all settings anew, without those of the run"


def _list_instead(chosen: Sequence[Override]) -> str:
    """Return what a resume can have instead of choices from config groups."""
    instead = []
    for override in chosen:
        group, line = override.key_or_group, override.input_line
        if override.type is OverrideType.DEL or group not in CHANGEABLE_GROUPS:
            instead.append(f"leave out {line}")
        elif group in KEPT_SETTINGS:
            name = KEPT_SETTINGS[group][0]
            value = str(line).partition("=")[2]
            instead.append(f"write {group}.{name}={value} instead of {line}")
        else:
            instead.append(f"write single keys instead of {line}")
    return ", ".join(instead)


def _check_phase(key: str, value: Any, phases: Sequence[str]) -> None:
    """Check that an override of a phase names one that the run has.

    Raises:
        UserError: If it does not; suggests the nearest phase.
    """
    match = re.fullmatch(r"phases\.([^.]+)(\..+)?", key)
    if match is not None and match[1] not in phases:
        near = difflib.get_close_matches(match[1], phases, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(phases)}"
        raise UserError(key, value, f"the run has no phase {match[1]}; {hint}")


def _check_evaluation_set(key: str, value: Any, names: Sequence[str]) -> None:
    """Check that an override of an evaluation set names one that the run has.

    Raises:
        UserError: If it does not.
    """
    match = re.fullmatch(r"data\.evaluation_sets\.([^.]+)(\..+)?", key)
    if match is not None and match[1] not in names:
        has = f"it has {', '.join(names)}" if names else "it has none"
        reason = f"the run began without the evaluation set {match[1]} ({has}), and a resume keeps its settings"
        raise UserError(key, value, reason)


def load_saved_config(path: Path) -> RunConfig:
    """Load the config that a run began with.

    Raises:
        UserError: If it is missing or damaged.
    """
    read_run_record(path)
    _, text = read_yaml(path / CONFIG_FILE, "resume", path, dict[str, Any])
    try:  # parse again with OmegaConf, which reads 1e-3 as a number
        saved = to_valid_run_config(cast(DictConfig, OmegaConf.create(text)))
        return replace(saved, trust=[])  # a file cannot say whom to trust
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        detail = error.args[0] if isinstance(error, OmegaConfBaseException) else error
        reason = f"is not a valid run config: {summarize_error(Exception(detail))}"
        raise UserError("resume", path / CONFIG_FILE, reason) from error
