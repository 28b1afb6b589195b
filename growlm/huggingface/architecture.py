"""Define the description of a transformers architecture; the descriptions are in `architectures.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from growlm.huggingface.keys.layer_keys import NO_WINDOWS, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import MappingRule
from growlm.model.config import field_paths
from growlm.model.config_parts import RoutingConfig

MIXTURE_FIELDS = ("top_k", "shared_d_ff", "routing.renormalize", "routing.shared_gate")
"""Fields that change what a mixture computes, and have no effect in a dense model."""


@dataclass(frozen=True)
class Conversion:
    """Conversion between a key's number and a field's.

    Attributes:
        read: Function from the key's number to the field's.
        write: Its inverse, up to rounding.
    """

    read: Callable[[float], float]
    write: Callable[[float], float]

    def to_key(self, value: float) -> float:
        """Return the key's number for a field's, which reads back as the same if any number near it does."""
        number = self.write(value)
        whole = round(number)
        near = (whole, number, math.nextafter(number, 0.0), math.nextafter(number, math.inf))
        return next((each for each in near if each and self.read(each) == value), number)


RECIPROCAL = Conversion(lambda x: 1 / x, lambda x: 1 / x)
INVERSE_SQUARE_ROOT = Conversion(lambda x: x**-0.5, lambda x: x**-2.0)


@dataclass(frozen=True)
class Architecture:
    """Description of a transformers architecture: its config keys and tensors, and growlm's equivalents.

    Attributes:
        model_type: `model_type` in `config.json`.
        class_name: transformers class of the causal language model.
        fixed_fields: `ModelConfig` fields for which the architecture supports a single value.
        field_to_key: Config key of each other field; several keys, separated by spaces, must agree.
        value_names: For a field whose values growlm names otherwise: growlm's value of each of the key's. For
            several keys that need not agree: of each tuple of their values.
        conversions: For a key whose number is another function of the model than growlm's: the conversion.
        key_aliases: Other names under which transformers may store a key, and the name in this table.
        key_defaults: Values that transformers uses where a key is absent.
        required_values: Values of other keys under which growlm computes the same; the first one is written.
        tensor_layouts: Mapping rules of the tensors. The first layout is written; any of them can be read.
        ignored_tensors: Patterns of tensors that are not weights: tables that old versions stored.
        rotary: Keys of the rotary embedding; None where `rope_theta` is an ordinary key of `field_to_key`.
        layers: Keys of what differs between blocks.
        own_fields: Fields that its `config.json` has under growlm's own key, and that tell this description from
            another of the same class.
        requires_divisible_heads: Whether its class requires that `n_heads` divides `d_model`.
        heads_multiple: Number that its class requires to divide `n_heads`.
        selecting_key: One of `required_values`, whose value tells this description from another of the same class.
        wide_modules: Names of modules and buffers that its class keeps in fp32 in a model of half precision.
        requires_square_output: Whether its class requires that the heads together are as wide as the model.
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
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    key_aliases: Mapping[str, str] = field(default_factory=dict)
    layers: LayerKeys = NO_WINDOWS
    own_fields: Mapping[str, Any] = field(default_factory=dict)
    rotary: RotaryKeys | None = field(default_factory=RotaryKeys)
    requires_divisible_heads: bool = False
    heads_multiple: int = 1
    selecting_key: str | None = None
    requires_square_output: bool = False
    wide_modules: tuple[str, ...] = ()

    @property
    def balance_loss_scales_with_top_k(self) -> bool:
        """Whether its balancing loss is `top_k` times growlm's: expert shares sum to `top_k`, growlm's to one."""
        return "router_aux_loss_coef" in self.field_to_key.values()

    @property
    def keys(self) -> set[str]:
        """Config keys that the description covers."""
        mapped = {key for keys in self.field_to_key.values() for key in keys.split()}
        return {*mapped, *self.required_values, *self.layers.names}

    def is_selected_by(self, content: Mapping[str, Any]) -> bool:
        """Return whether a `config.json` has the value of `selecting_key` that this description requires."""
        key = self.selecting_key
        if key is None:
            return True
        return content.get(key, self.key_defaults.get(key)) in self.required_values[key]

    @property
    def unmapped_fields(self) -> list[str]:
        """Fields without a key that affect training only, or nothing at all."""
        known = {*self.field_to_key, *self.fixed_fields}
        routing = [] if "routing" in known else field_paths(RoutingConfig(), "routing.")
        if self.fixed_fields.get("num_experts") == 0:
            return [
                name for name in dict.fromkeys((*routing, *MIXTURE_FIELDS)) if name not in known
            ]
        return [name for name in routing if name not in {*known, *MIXTURE_FIELDS}]

    def get_key(self, name: str) -> str:
        """Return the config key of a field, for messages."""
        rope_key = None if self.rotary is None else self.rotary.get_key(name)
        return rope_key or self.field_to_key.get(name, name).split()[0]

    def replace_field_names(self, text: str) -> str:
        """Return a message with growlm's field names replaced by the architecture's keys."""
        return re.sub(r"[\w.]+", lambda word: self.field_to_key.get(word[0], word[0]), text)
