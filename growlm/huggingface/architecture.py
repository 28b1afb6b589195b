"""What an architecture of transformers is described by; the descriptions are in `architectures.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growlm.huggingface.mapping_rules import MappingRule
from growlm.model.config import ModelConfig


@dataclass(frozen=True)
class RotaryKeys:
    """Where an architecture's config has its rotary positions, when it has no `rope_parameters`."""

    theta_key: str = "rope_theta"
    default_theta: float = 10000.0
    """Where the key is absent."""
    fraction_key: str = "partial_rotary_factor"
    default_fraction: float = 1.0
    """Share of a head's channels that is rotated, where the key is absent."""


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: Its name in `config.json`.
        class_name: Its causal language model there.
        fixed: Fields of ours that it has one value of.
        names: Fields of ours and its keys for them; several keys, with a space between, must agree.
        defaults: What transformers takes where a key is absent.
        only: Keys and the values with which it computes what we do; the first one is written.
        layouts: Rules for its tensors. The first layout is written; files of any are read.
        ignored: Patterns of tensors that say nothing: tables that old versions stored.
        rotary: None where the base of the rotary frequencies is an ordinary key.
        heads_divide_width: Whether its class insists on that.
    """

    model_type: str
    class_name: str
    fixed_fields: Mapping[str, Any]
    field_to_key: Mapping[str, str]
    key_defaults: Mapping[str, Any]
    required_values: Mapping[str, tuple[Any, ...]]
    tensor_layouts: tuple[tuple[MappingRule, ...], ...]
    ignored_tensors: tuple[str, ...] = ()
    rotary: RotaryKeys | None = field(default_factory=RotaryKeys)
    requires_divisible_heads: bool = False

    @property
    def balance_loss_scales_with_top_k(self) -> bool:
        """Whether its balancing loss is `top_k` times ours: shares of experts sum to `top_k`, ours to one."""
        return "router_aux_loss_coef" in self.field_to_key.values()

    @property
    def unmapped_fields(self) -> list[str]:
        """Fields of ours that matter in training only, or not at all, for which it has no key."""
        known = {*self.field_to_key, *self.fixed_fields}
        router = [name for name in ModelConfig.__dataclass_fields__ if name.startswith("router_")]
        return [name for name in (*router, "top_k") if name not in known]

    def replace_field_names(self, text: str) -> str:
        """A message with its names of our fields."""
        return re.sub(r"\w+", lambda word: self.field_to_key.get(word[0], word[0]), text)
