"""A model of ours as a `config.json` of an architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.config_reading import EXTRAS_KEY, TOKEN_ID_KEYS, parse_model_config
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

_DEFAULTS = ModelConfig()


def build_hf_config(
    architecture: Architecture,
    config: ModelConfig,
    dtype: torch.dtype,
    token_ids: Mapping[str, Any],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """What `config.json` says of a model of ours.

    Args:
        architecture: One that `holds` the config.
        config: The model's.
        dtype: Of the weights.
        token_ids: By the names of `TOKEN_IDS`.
        record: The artefact's, kept under `growlm`.
    """
    name = str(dtype).removeprefix("torch.")
    content: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "dtype": name,
        "torch_dtype": name,  # what readers before transformers 5 look at
    }
    content |= {key: token_ids.get(key) for key in TOKEN_ID_KEYS}
    content |= {key: allowed[0] for key, allowed in architecture.required_values.items()}
    if "sliding_window" in architecture.key_defaults:
        content["sliding_window"] = None
    for ours, theirs in architecture.field_to_key.items():
        content |= dict.fromkeys(theirs.split(), getattr(config, ours))
    if architecture.balance_loss_scales_with_top_k:
        content["router_aux_loss_coef"] = config.router_balance_weight / config.top_k
    if (rotary := architecture.rotary) is not None:
        parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
        content[rotary.theta_key] = config.rope_theta
        if rotary.default_fraction != 1.0:
            parameters["partial_rotary_factor"] = content[rotary.fraction_key] = 1.0
        content["rope_parameters"] = parameters
    extras = {
        name: getattr(config, name)
        for name in architecture.unmapped_fields
        if getattr(config, name) != getattr(_DEFAULTS, name)
    }
    if extras or record:
        content[EXTRAS_KEY] = {"model": extras, "record": dict(record)}
    return content


def can_represent(architecture: Architecture, config: ModelConfig) -> bool:
    """Whether the architecture has a model of this shape: what it would write reads back the same."""
    if architecture.requires_divisible_heads and config.d_model % config.n_heads:
        return False
    content = build_hf_config(architecture, config, torch.float32, {}, {})
    try:
        again = parse_model_config(architecture, content, Path())
    except UserError:
        return False
    close = dataclasses.replace(again, router_balance_weight=config.router_balance_weight)
    return close == config
