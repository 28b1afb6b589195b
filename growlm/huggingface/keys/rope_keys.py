"""Read and write the config keys of rotary embeddings, as transformers 5 and earlier releases store them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growlm.huggingface.keys.config_keys import ConfigReader
from growlm.huggingface.keys.layer_keys import FULL, WINDOW
from growlm.model.config import ModelConfig, get_field
from growlm.model.config_parts import RopeScalingConfig

PARAMETERS_KEY = "rope_parameters"
FORMER_PARAMETERS_KEY = "rope_scaling"
SCALING_KEYS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_seq_len": "original_max_position_embeddings",
    },
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
        "original_max_seq_len": "original_max_position_embeddings",
    },
    "longrope": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "short_factors": "short_factor",
        "long_factors": "long_factor",
        "original_max_seq_len": "original_max_position_embeddings",
    },
}
"""The key of each field of `RopeScalingConfig` that a kind of scaling has."""
OPTIONAL_KEYS = ("beta_fast", "beta_slow", "truncate", "attention_factor")
"""Keys that are left out where they have transformers' default, which is growlm's, too."""
_DEFAULTS = RopeScalingConfig()


@dataclass(frozen=True)
class RotaryKeys:
    """Config keys of an architecture's rotary embedding, for configs without `rope_parameters`."""

    theta_key: str = "rope_theta"
    default_theta: float = 10000.0
    """Base of the frequencies where the key is absent."""
    fraction_key: str = "partial_rotary_factor"
    default_fraction: float = 1.0
    """Fraction of a head's channels that is rotated, where the key is absent."""
    allows_fraction: bool = False
    """Whether its class can rotate a part of a head's channels only."""
    window_theta_key: str | None = None
    """For a class with a base of its own for blocks with a window: its key in older configs."""
    default_window_theta: float | None = None
    """Its value where the key is absent; None for that of the other blocks."""
    is_nested: bool = False
    """Whether blocks with a window have parameters of their own, which are never scaled."""
    kinds: tuple[str, ...] = ("linear", "llama3", "yarn", "longrope")
    """The kinds of scaling that its class has."""
    kind_aliases: Mapping[str, str] = field(default_factory=dict)
    """Former names of kinds."""
    original_length_key: str | None = None
    """Key outside the parameters that holds the original length."""
    size_key: str | None = None
    """For a class that has no other key: the number of a head's channels that are rotated."""

    def get_key(self, name: str) -> str | None:
        """Return the key of a field of the part `rope`, for messages; None for any other field."""
        if name == "rope.theta":
            return self.theta_key
        if name == "rope.fraction":
            return self.size_key or self.fraction_key
        prefix = "rope.scaling."
        if not name.startswith(prefix):
            return None
        known = {path: key for keys in SCALING_KEYS.values() for path, key in keys.items()}
        path = name.removeprefix(prefix)
        return f"{PARAMETERS_KEY}.{known.get(path, path)}"


def read_rope(
    rotary: RotaryKeys, keys: ConfigReader, has_windows: bool, head_dim: Any
) -> dict[str, Any]:
    """Return the fields of the part `rope`, by path.

    Args:
        rotary: The architecture's keys.
        keys: Reader of the config.
        has_windows: Whether any block has a window.
        head_dim: Channels of a head, as the config has them.

    Raises:
        UserError: If the embedding is one that growlm does not support.
    """
    if rotary.size_key is not None:
        return {"rope.fraction": _read_fraction(rotary.size_key, keys, head_dim)}
    fields = {
        "rope.theta": keys.content.get(rotary.theta_key, rotary.default_theta),
        "rope.fraction": keys.content.get(rotary.fraction_key, rotary.default_fraction),
    }
    window_theta = rotary.default_window_theta
    if rotary.window_theta_key is not None:
        window_theta = keys.content.get(rotary.window_theta_key, window_theta)
    for key, parameters in _get_parameters(rotary, keys).items():
        if rotary.is_nested and isinstance(parameters, dict) and FULL in parameters:
            window = parameters.get(WINDOW, {})
            if not isinstance(window, dict) or window.get("rope_type", "default") != "default":
                keys.raise_error(f"{key}.{WINDOW}", window, "must have rope_type default")
            window_theta = window.get("rope_theta", window_theta)
            key, parameters = f"{key}.{FULL}", parameters[FULL]
        if not isinstance(parameters, dict) or dict in map(type, parameters.values()):
            keys.raise_error(key, parameters, "must be null or one mapping for all layers")
        fields["rope.theta"] = parameters.get("rope_theta", fields["rope.theta"])
        fields["rope.fraction"] = parameters.get("partial_rotary_factor", fields["rope.fraction"])
        fields |= _read_scaling(key, parameters, rotary, keys)
    if has_windows and rotary.is_nested:
        theta = fields["rope.theta"]
        window_theta = theta if window_theta is None else window_theta
        if window_theta != theta or "rope.scaling.kind" in fields:
            fields["rope.window_theta"] = window_theta
    if not rotary.allows_fraction and fields["rope.fraction"] != 1.0:
        reason = "must be 1.0: its class rotates all channels of a head"
        keys.raise_error(rotary.fraction_key, fields["rope.fraction"], reason)
    return fields


def _read_fraction(size_key: str, keys: ConfigReader, head_dim: int) -> float:
    """Return the fraction of a head's channels that is rotated, given their number."""
    size = keys.get(size_key)
    if type(size) is not int or size % 2 or not 0 < size <= head_dim:
        reason = f"must be an even number from 2 to {head_dim}, the channels of a head"
        keys.raise_error(size_key, size, reason)
    fraction: float = size / head_dim
    return fraction if int(head_dim * fraction) == size else math.nextafter(fraction, 1.0)


def _get_parameters(rotary: RotaryKeys, keys: ConfigReader) -> dict[str, Any]:
    """Return the parameters that apply, by their key; of two, as transformers does: the former ones win."""
    given = {key: keys.get(key) for key in (PARAMETERS_KEY, FORMER_PARAMETERS_KEY)}
    given = {key: value for key, value in given.items() if value is not None}
    former, current = given.get(FORMER_PARAMETERS_KEY), given.get(PARAMETERS_KEY)
    if not (isinstance(former, dict) and isinstance(current, dict) and former):
        return given
    if not rotary.is_nested:
        return {FORMER_PARAMETERS_KEY: former}
    full = current.get(FULL)
    return {PARAMETERS_KEY: current | {FULL: (full if isinstance(full, dict) else {}) | former}}


def _read_scaling(
    key: str, parameters: Mapping[str, Any], rotary: RotaryKeys, keys: ConfigReader
) -> dict[str, Any]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return {}
    kind = rotary.kind_aliases.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in rotary.kinds:
        known = ", ".join(rotary.kinds)
        keys.raise_error(f"{key}.rope_type", kind, f"must be default or one of {known}")
    values = {
        path: parameters[name]
        for path, name in SCALING_KEYS[kind].items()
        if parameters.get(name) is not None
    }
    if "original_max_seq_len" in SCALING_KEYS[kind]:
        given = rotary.original_length_key and keys.get(rotary.original_length_key)
        if given is not None:
            values["original_max_seq_len"] = given
        values.setdefault("original_max_seq_len", keys.get("max_position_embeddings"))
    if kind == "longrope" and "factor" not in values:
        lengths = keys.get("max_position_embeddings"), values["original_max_seq_len"]
        if all(type(length) is int and length > 0 for length in lengths):
            values["factor"] = max(1.0, lengths[0] / lengths[1])
    scales = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if kind == "yarn" and "attention_factor" not in values and all(scales):
        values["attention_factor"] = _attention_factor(key, values.get("factor"), scales, keys)
    return {"rope.scaling.kind": kind} | {f"rope.scaling.{n}": v for n, v in values.items()}


def _attention_factor(key: str, factor: Any, scales: tuple[Any, Any], keys: ConfigReader) -> float:
    """Return the factor of cosines and sines that DeepSeek's two scales stand for."""
    if not all(type(value) in (int, float) for value in (factor, *scales)):
        keys.raise_error(key, "...", "mscale, mscale_all_dim and factor must be numbers")
    numerator, denominator = (
        0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0 for scale in scales
    )
    if numerator <= 0 or denominator <= 0:
        keys.raise_error(key, "...", "mscale and mscale_all_dim must give positive scales")
    return float(numerator / denominator)


def write_rope(rotary: RotaryKeys, config: ModelConfig) -> dict[str, Any]:
    """Return the keys of the config's rotary embedding."""
    if rotary.size_key is not None:
        return {rotary.size_key: config.rotary_dim}
    scaling = config.rope.scaling
    kind = "default" if scaling.kind == "none" else scaling.kind
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": config.rope.theta}
    for path, name in SCALING_KEYS.get(kind, {}).items():
        value = get_field(scaling, path)
        if name not in OPTIONAL_KEYS or value != get_field(_DEFAULTS, path):
            parameters[name] = list(value) if isinstance(value, tuple) else value
    content: dict[str, Any] = {rotary.theta_key: config.rope.theta}
    if rotary.original_length_key is not None and "original_max_seq_len" in SCALING_KEYS.get(
        kind, ()
    ):
        content[rotary.original_length_key] = scaling.original_max_seq_len
    if rotary.is_nested:
        theta = config.rope.window_theta or config.rope.theta
        defaults = (rotary.default_theta, rotary.default_window_theta or rotary.default_theta)
        if kind == "default" and (config.rope.theta, theta) == defaults:
            return content  # releases whose class has one set of parameters for all blocks read this, too
        window = {"rope_type": "default", "rope_theta": theta}
        return {PARAMETERS_KEY: {FULL: parameters, WINDOW: window}}
    if rotary.allows_fraction:
        parameters["partial_rotary_factor"] = content[rotary.fraction_key] = config.rope.fraction
    return content | {PARAMETERS_KEY: parameters}
