"""Translate overrides that name the model config's fields as growlm 0.1 did, such as `model.norm=rmsnorm`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growlm.model.former_fields import BIAS_FIELDS, RENAMED_FIELDS

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|)model\.(?P<name>\w+)=(?P<value>[^{].*)", re.DOTALL)
_FIRST_BIAS_FIELD, *_OTHER_BIAS_FIELDS = BIAS_FIELDS


def translate_former_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides under the present keys; a sweep over a key stays one."""
    return [new for override in overrides for new in _translate(override)]


def _translate(override: str) -> list[str]:
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return [override]
    sign, name, value = match["sign"], match["name"], match["value"]
    if name in RENAMED_FIELDS:
        return [f"{sign}model.{RENAMED_FIELDS[name]}={value}"]
    if name == "bias":  # the others refer to the first, so that a sweep has one dimension
        others = [
            f"{sign}model.{each}=${{model.{_FIRST_BIAS_FIELD}}}" for each in _OTHER_BIAS_FIELDS
        ]
        return [f"{sign}model.{_FIRST_BIAS_FIELD}={value}", *others]
    return [override]
