"""Write a `ModelConfig` as the `config.json` of a transformers architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_reading import EXTRAS_KEY, TOKEN_ID_KEYS, parse_model_config
from growlm.huggingface.keys.config_keys import CONFIG_NAME
from growlm.huggingface.keys.layer_keys import write_layers
from growlm.huggingface.keys.rope_keys import write_rope
from growlm.model.config import ModelConfig, field_paths, get_field, replace_fields
from growlm.runtime.errors import UserError

_DEFAULTS = ModelConfig()


def build_hf_config(
    architecture: Architecture,
    config: ModelConfig,
    dtype: torch.dtype,
    token_ids: Mapping[str, Any],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the content of `config.json` for a growlm model.

    Args:
        architecture: Architecture that can represent the config (`can_represent`).
        config: Config of the model.
        dtype: Dtype of the weights.
        token_ids: Special token ids by the names of `TOKEN_ID_KEYS`.
        record: Record of the checkpoint, stored under the key `growlm`.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    content: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,  # the key before transformers 5
    }
    content |= {key: token_ids.get(key) for key in TOKEN_ID_KEYS}
    content |= {key: values[0] for key, values in architecture.required_values.items()}
    for name, hf_keys in architecture.field_to_key.items():
        value = config.attention_scale if name == "attention.scale" else get_field(config, name)
        if conversion := architecture.conversions.get(hf_keys):
            value = conversion.to_key(value)
        if names := architecture.value_names.get(name):
            found = [theirs for theirs, ours in names.items() if ours == value]
            value = found[0] if found else None  # None cannot be read back
            if isinstance(value, tuple):  # of keys that need not agree
                content |= dict(zip(hf_keys.split(), value, strict=True))
                continue
        content |= dict.fromkeys(hf_keys.split(), _to_json_value(value))
    if architecture.rotary is not None:
        content |= write_layers(architecture.layers, config)
    if architecture.balance_loss_scales_with_top_k:
        content["router_aux_loss_coef"] = config.routing.balance_weight / config.top_k
    if architecture.rotary is not None:
        content |= write_rope(architecture.rotary, config)
    extras = {
        name: get_field(config, name)
        for name in architecture.unmapped_fields
        if get_field(config, name) != get_field(_DEFAULTS, name)
    } | dict(architecture.own_fields)
    if extras or record:
        content[EXTRAS_KEY] = {"model": extras, "record": dict(record)}
    return content


def can_represent(architecture: Architecture, config: ModelConfig) -> bool:
    """Return whether an architecture can represent a model: its `config.json` reads back as the same config."""
    return not find_differences(architecture, config)


def find_differences(architecture: Architecture, config: ModelConfig) -> list[str]:
    """Return the fields of a model that an architecture cannot represent, as text."""
    if architecture.requires_divisible_heads and config.d_model % config.n_heads:
        return [f"d_model={config.d_model}, no multiple of n_heads={config.n_heads}"]
    if architecture.requires_square_output and config.d_model != config.n_heads * config.head_dim:
        return [f"head_dim={config.head_dim}"]
    content = build_hf_config(architecture, config, torch.float32, {}, {})
    try:
        parsed = parse_model_config(architecture, content, Path())
    except UserError as error:
        return [f"{error.key}={error.value}"]
    # The weight of the balancing loss may be off by rounding, as it is divided by top_k and multiplied again.
    same: dict[str, Any] = {"routing.balance_weight": parsed.routing.balance_weight}
    if config.expert_d_ff == config.d_ff:
        same["expert_d_ff"] = parsed.expert_d_ff
    wanted = replace_fields(config, same)
    if parsed == wanted:
        return []
    names = field_paths(wanted)
    values = {name: get_field(wanted, name) for name in names}
    return [
        f"{name}={value}" for name, value in values.items() if value != _get_or_none(parsed, name)
    ]


def _get_or_none(config: ModelConfig, name: str) -> Any:
    """Return a field; None if it is one of a part, such as scaled positions, that the config does not have."""
    try:
        return get_field(config, name)
    except AttributeError:
        return None


def explain_own_class(config: ModelConfig) -> str:
    """Return why no class of transformers can represent a model: what the nearest one does not have."""
    found = {
        each.class_name: find_differences(each, config)
        for each in ARCHITECTURES
        if each is not GROWLM
    }

    def distance(name: str) -> tuple[bool, int]:
        """Rank classes whose keys have no value for the model last: what else they lack is not known."""
        return any(each.startswith(CONFIG_NAME) for each in found[name]), len(found[name])

    nearest = min(found, key=distance)
    return (
        f"no class of transformers computes the same; the nearest, {nearest}, cannot have "
        f"{', '.join(found[nearest])}"
    )


def get_origin(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record's entry about the Hugging Face model that the checkpoint was made from."""
    origin = record.get("huggingface")
    return origin if isinstance(origin, dict) else {}


def _to_json_value(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
