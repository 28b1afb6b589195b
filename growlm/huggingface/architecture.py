"""Define the description of a transformers architecture; the descriptions are in `architectures.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growlm.huggingface.mapping_rules import MappingRule
from growlm.huggingface.rope_keys import RotaryKeys
from growlm.model.config import field_paths
from growlm.model.config_parts import RoutingConfig


@dataclass(frozen=True)
class Architecture:
    """Description of a transformers architecture: its config keys and tensors, and growlm's equivalents.

    Attributes:
        model_type: `model_type` in `config.json`.
        class_name: transformers class of the causal language model.
        fixed_fields: `ModelConfig` fields for which the architecture supports a single value.
        field_to_key: Config key of each other field; several keys, separated by spaces, must agree.
        value_names: For a key whose values growlm names otherwise: growlm's value of each.
        key_aliases: Other names under which transformers may store a key, and the name in this table.
        key_defaults: Values that transformers uses where a key is absent.
        required_values: Values of other keys under which growlm computes the same; the first one is written.
        tensor_layouts: Mapping rules of the tensors. The first layout is written; any of them can be read.
        ignored_tensors: Patterns of tensors that are not weights: tables that old versions stored.
        rotary: Keys of the rotary embedding; None where `rope_theta` is an ordinary key of `field_to_key`.
        requires_divisible_heads: Whether its class requires that `n_heads` divides `d_model`.
    """

    model_type: str
    class_name: str
    fixed_fields: Mapping[str, Any]
    field_to_key: Mapping[str, str]
    key_defaults: Mapping[str, Any]
    required_values: Mapping[str, tuple[Any, ...]]
    tensor_layouts: tuple[tuple[MappingRule, ...], ...]
    ignored_tensors: tuple[str, ...] = ()
    value_names: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    key_aliases: Mapping[str, str] = field(default_factory=dict)
    rotary: RotaryKeys | None = field(default_factory=RotaryKeys)
    requires_divisible_heads: bool = False

    @property
    def balance_loss_scales_with_top_k(self) -> bool:
        """Whether its balancing loss is `top_k` times growlm's: expert shares sum to `top_k`, growlm's to one."""
        return "router_aux_loss_coef" in self.field_to_key.values()

    @property
    def unmapped_fields(self) -> list[str]:
        """Fields without a key that affect training only, or nothing at all."""
        known = {*self.field_to_key, *self.fixed_fields}
        routing = [] if "routing" in known else field_paths(RoutingConfig(), "routing.")
        return [name for name in (*routing, "top_k") if name not in known]

    def get_key(self, name: str) -> str:
        """Return the config key of a field, for messages."""
        rope_key = None if self.rotary is None else self.rotary.get_key(name)
        return rope_key or self.field_to_key.get(name, name).split()[0]

    def replace_field_names(self, text: str) -> str:
        """Return a message with growlm's field names replaced by the architecture's keys."""
        return re.sub(r"[\w.]+", lambda word: self.field_to_key.get(word[0], word[0]), text)
