"""Apply what a command line and files change about a plan's phases: lengths that replace others, and names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from growlm.config.composing.config_layers import ConfigLayer, read_command_line
from growlm.runtime.errors import UserError

LENGTH_KEYS = ("steps", "tokens", "flops")
"""The settings of a phase that say how long it is; exactly one is set."""
_PHASE_KEY = re.compile(r"phases\.([^.]+)(\..+)?")


def replace_phase_lengths(
    config: DictConfig, overrides: Sequence[Override], read_files: Callable[[], list[ConfigLayer]]
) -> None:
    """Keep the length of each phase that was set last: `tokens` of the command line replaces a plan's `steps`.

    Args:
        config: Composed config; changed in place.
        overrides: Overrides of the command line.
        read_files: Returns the settings of each file, in the order in which they are merged.

    Raises:
        UserError: If one file, or the command line, sets two lengths of a phase.
    """
    phases = _get_phases(config)
    unclear = [name for name, phase in phases.items() if len(_lengths(phase)) > 1]
    layers = [*read_files(), read_command_line(overrides)] if unclear else []
    for name in unclear:
        last = _find_last_length(name, layers)
        for key in _lengths(phases[name]):
            if last is not None and key != last:
                phases[name][key] = None  # without a last one, validation reports both


def _find_last_length(name: str, layers: Sequence[ConfigLayer]) -> str | None:
    last = None
    for layer in layers:
        phase = _get_settings(layer, name)
        given = _lengths(phase)
        if len(given) > 1:
            where = "" if layer.file is None else f" (in {layer.file})"
            reason = f"needs exactly one of {', '.join(LENGTH_KEYS)}{where}"
            raise UserError(f"phases.{name}", ", ".join(given), reason)
        if given:
            (last,) = given
        elif last in phase:  # set to null
            last = None
    return last


def check_phase_names(
    config: DictConfig, overrides: Sequence[Override], read_files: Callable[[], list[ConfigLayer]]
) -> None:
    """Check that overrides change phases that the plan has, and add phases that it does not have.

    Args:
        config: Config composed with these overrides; empty if they could not be composed.
        overrides: Overrides of the command line.
        read_files: Returns the settings of each file.

    Raises:
        UserError: For the first override with a name that does not fit; suggests the nearest phase.
    """
    phases = _get_phases(config)
    given: dict[str, Any] = read_command_line(overrides).settings.get("phases") or {}
    changed = [o for o in overrides if _PHASE_KEY.fullmatch(o.key_or_group)]
    if not changed:
        return
    is_doubtful = any(
        o.is_delete() or (o.is_add() and isinstance(o.value(), dict)) for o in changed
    ) or any(_is_from(phases.get(name), given[name]) for name in given)
    if not is_doubtful:
        return
    known = dict.fromkeys(name for layer in read_files() for name in _get_names(layer))
    for override in changed:
        match = _PHASE_KEY.fullmatch(override.key_or_group)
        assert match is not None
        name, is_whole = match[1], match[2] is None
        key = str(override.input_line).partition("=")[0]
        if override.is_add() and is_whole and name in known:
            reason = "there is such a phase already; leave out the + to change its settings"
            raise UserError(key, override.value(), reason)
        if override.is_add() or override.is_force_add():
            known[name] = None
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the plan has {', '.join(known)}"
            reason = f"there is no phase {name}; {hint}"
            if override.is_delete():
                raise UserError("override", key, reason)
            raise UserError(key, override.value(), f"{reason} (+{key}=... would add a phase)")
        elif override.is_delete() and is_whole:
            del known[name]


def _is_from(phase: Any, given: Any) -> bool:
    """Return whether all settings of a composed phase may come from the command line."""
    if not isinstance(phase, DictConfig) or not isinstance(given, dict):
        return True
    return set(map(str, phase)) <= set(map(str, given))


def _get_phases(config: DictConfig) -> dict[str, Any]:
    phases = config.get("phases")
    return {} if phases is None else {str(name): phases[name] for name in phases}


def _get_names(layer: ConfigLayer) -> list[str]:
    phases = layer.settings.get("phases")
    return [str(name) for name in phases] if isinstance(phases, dict) else []


def _get_settings(layer: ConfigLayer, name: str) -> dict[str, Any]:
    phases = layer.settings.get("phases")
    phase = phases.get(name) if isinstance(phases, dict) else None
    return phase if isinstance(phase, dict) else {}


def _lengths(phase: Any) -> list[str]:
    if not isinstance(phase, dict | DictConfig):
        return []
    return [key for key in LENGTH_KEYS if phase.get(key) is not None]
