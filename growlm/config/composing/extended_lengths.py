"""Read the lengths that a resume gives phases: `phases.deep.steps=+500` adds to what the run has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from growlm.config.composing.phase_overrides import LENGTH_KEYS
from growlm.config.schema import PhaseConfig, RunConfig
from growlm.runtime.errors import UserError

LENGTH_PATTERN = re.compile(rf"phases\.([^.]+)\.({'|'.join(LENGTH_KEYS)})")
"""Keys that set the length of a phase."""
_PLUS = re.compile(r"(?:^|[\[(,\s])\+\s*[\d.]")
_NESTED_PLUS = re.compile(rf"\b({'|'.join(LENGTH_KEYS)})['\"]?\s*:\s*\+")


def check_no_added_lengths(overrides: Sequence[Override], needs: str) -> None:
    """Check that no override adds to a length that is not there to add to.

    Args:
        overrides: Overrides of the command line.
        needs: What adding needs.

    Raises:
        UserError: For the first one that does.
    """
    for override in overrides:
        _check_not_nested(override)
        value = _added_value(override)
        if value is not None:
            reason = f"adds to the length that a run has; {needs}"
            raise UserError(override.key_or_group, value, reason)


def check_added_lengths(overrides: Sequence[Override]) -> None:
    """Check that what overrides add to the steps of phases is a whole number.

    Raises:
        UserError: For the first one that is not.
    """
    for override in overrides:
        added = _added_value(override)
        if added is not None and override.key_or_group.endswith(".steps"):
            value = override.value()
            if isinstance(value, float):
                example = f"+{value:.0f}" if value.is_integer() else "+500"
                reason = f"must add a whole number of steps, such as {example}"
                raise UserError(override.key_or_group, added, reason)


def resolve_length(override: Override, value: Any, saved: RunConfig) -> Any:
    """Return the value that an override of a resume sets: with a plus, that much more than the run has.

    Args:
        override: Override of the command line.
        value: Value that Hydra reads from it, which has no plus.
        saved: Config that the run began with.

    Raises:
        UserError: If nothing is added, or in another unit than that of the phase's length.
    """
    _check_not_nested(override)
    match, added = LENGTH_PATTERN.fullmatch(override.key_or_group), _added_value(override)
    phase = None if match is None else saved.phases.get(match[1])
    is_number = isinstance(value, int | float)
    if match is None or phase is None or added is None or not is_number:
        return value
    if value == 0:
        raise UserError(override.key_or_group, added, "adds nothing; give how much to add")
    before = getattr(phase, match[2])
    if before is None:
        own = next(key for key in LENGTH_KEYS if getattr(phase, key) is not None)
        reason = f"the phase's length is in {own}; write phases.{match[1]}.{own}=+..."
        raise UserError(override.key_or_group, added, reason)
    return before + value


def list_length_changes(before: RunConfig, after: RunConfig) -> dict[str, tuple[str, str]]:
    """Return the phases whose length differs, with the old and the new length, such as `steps=500`."""
    changes = {}
    for name, phase in after.phases.items():
        old = before.phases.get(name)
        if old is not None and _length(old) != _length(phase):
            changes[name] = (_length(old), _length(phase))
    return changes


def _length(phase: PhaseConfig) -> str:
    given = {key: getattr(phase, key) for key in LENGTH_KEYS}
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in given.items()
        if value is not None
    )


def _added_value(override: Override) -> str | None:
    """Return the value as it was written if it begins with a plus and belongs to a length; else None."""
    if not LENGTH_PATTERN.fullmatch(override.key_or_group) or override.is_delete():
        return None
    written = _written_value(override)
    return written if _PLUS.search(written) else None


def _check_not_nested(override: Override) -> None:
    """Check that no mapping sets a length with a plus, which is lost with the rest of how it was written.

    Raises:
        UserError: If one does.
    """
    written = _written_value(override)
    if override.key_or_group.split(".")[0] == "phases" and (match := _NESTED_PLUS.search(written)):
        reason = f"cannot add to a length inside of braces; write phases.NAME.{match[1]}=+N"
        raise UserError(override.key_or_group, written, reason)


def _written_value(override: Override) -> str:
    return str(override.input_line).partition("=")[2].strip()
