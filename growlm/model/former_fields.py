"""Translate the fields that `ModelConfig` had before growlm 0.2, when it was flat, to its parts.

Python code, configs, checkpoints and exports that were made before are all translated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

RENAMED_FIELDS = {
    "norm": "norm.kind",
    "norm_eps": "norm.eps",
    "feed_forward": "feed_forward.kind",
    "rope_theta": "rope.theta",
    "router_balance_weight": "routing.balance_weight",
    "router_z_weight": "routing.z_weight",
    "router_bias_step": "routing.bias_step",
    "router_tie_breaking": "routing.tie_breaking",
}
"""The present field of each former one, but `bias`."""
BIAS_FIELDS: dict[str, dict[bool, Any]] = {
    "norm.bias": {True: True, False: False},
    "feed_forward.bias": {True: True, False: False},
    "attention.bias": {True: "all", False: "none"},
}
"""The values of the three present fields for each value of the former field `bias`."""
ATTRIBUTES_MOVED = {
    name: path for name, path in RENAMED_FIELDS.items() if name not in ("norm", "feed_forward")
}
"""The fields that were read under another name and now are not the name of a part."""


def is_former_field(name: str, value: Any) -> bool:
    """Return whether a field with this value is one of the former, flat fields."""
    if name in ("norm", "feed_forward"):
        return not (isinstance(value, Mapping) or is_dataclass(value))
    return name == "bias" or name in RENAMED_FIELDS


def translate_former_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the former ones translated into fields of their parts, which they override.

    Args:
        fields: Fields of a `ModelConfig`; parts are mappings or dataclasses.
    """
    former = {name: value for name, value in fields.items() if is_former_field(name, value)}
    translated = {name: value for name, value in fields.items() if name not in former}
    for name, value in former.items():
        new = {RENAMED_FIELDS[name]: value} if name != "bias" else _translate_bias(value)
        for path, new_value in new.items():
            part_name, _, field_name = path.partition(".")
            part = translated.get(part_name, {})
            translated[part_name] = (
                {**part, field_name: new_value}
                if isinstance(part, Mapping)
                else replace(part, **{field_name: new_value})
            )
    return translated


def _translate_bias(value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):  # left as it is, for the check of types
        return dict.fromkeys(BIAS_FIELDS, value)
    return {path: values[value] for path, values in BIAS_FIELDS.items()}
