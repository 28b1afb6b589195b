"""OLMo 1 to 3, OLMoE and FlexOlmo."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    EXPERT_KEYS,
    GATED_RULES,
    GROUPED_KEYS,
    LLAMA_DEFAULTS,
    POST_NORM_RULES,
    PRE_NORM_RULES,
    QK_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
    mixture_layouts,
)
from growlm.huggingface.keys.layer_keys import FULL, WINDOW, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import unit_gain_rule

_FIXED = RMS_SWIGLU | {"attention.qk_norm": "full", "feed_forward.bias": False}
_POST = _FIXED | {"norm.placement": "post"}
_KEYS = SIZE_KEYS | GROUPED_KEYS | {"norm.eps": "rms_norm_eps", "attention.bias": "attention_bias"}
_MIXTURE_KEYS = _KEYS | EXPERT_KEYS | {"routing.renormalize": "norm_topk_prob"}
_DEFAULTS = LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5}
_MIXTURE_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 4096,
    "router_aux_loss_coef": 0.01,
    "norm_topk_prob": False,
}

OLMO = Architecture(
    model_type="olmo",
    class_name="OlmoForCausalLM",
    fixed_fields={
        "norm.kind": "layernorm",
        "norm.bias": False,
        "norm.eps": 1e-5,
        "feed_forward.kind": "swiglu",
        "feed_forward.bias": False,
        "num_experts": 0,
    },
    field_to_key=SIZE_KEYS | GROUPED_KEYS | {"attention.bias": "attention_bias"},
    key_defaults=LLAMA_DEFAULTS,
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=(
        (
            unit_gain_rule("blocks.{layer}.attention_norm.weight"),
            unit_gain_rule("blocks.{layer}.feed_forward_norm.weight"),
            unit_gain_rule("final_norm.weight"),
            *ATTENTION_RULES,
            *GATED_RULES,
        ),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

OLMO2 = Architecture(
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    fixed_fields=_POST | {"num_experts": 0},
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS,
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=((*ATTENTION_RULES, *POST_NORM_RULES, *QK_NORM_RULES, *GATED_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

OLMO3 = Architecture(
    model_type="olmo3",
    class_name="Olmo3ForCausalLM",
    fixed_fields=_POST | {"num_experts": 0},
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS,
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=OLMO2.tensor_layouts,
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(types=(WINDOW, WINDOW, WINDOW, FULL), default_window=4096, needs_window=True),
    rotary=RotaryKeys(default_theta=500000.0, is_nested=True),
    requires_divisible_heads=True,
)

OLMOE = Architecture(
    model_type="olmoe",
    class_name="OlmoeForCausalLM",
    fixed_fields=_FIXED,
    field_to_key=_MIXTURE_KEYS,
    key_aliases={"num_local_experts": "num_experts"},
    key_defaults=_MIXTURE_DEFAULTS
    | {"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=mixture_layouts(*ATTENTION_RULES, *PRE_NORM_RULES, *QK_NORM_RULES),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

FLEX_OLMO = Architecture(
    model_type="flex_olmo",
    class_name="FlexOlmoForCausalLM",
    fixed_fields=_POST,
    field_to_key=_MIXTURE_KEYS,
    key_aliases={"num_local_experts": "num_experts"},
    key_defaults=_MIXTURE_DEFAULTS | {"num_experts": 7, "num_experts_per_tok": 5},
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=mixture_layouts(*ATTENTION_RULES, *POST_NORM_RULES, *QK_NORM_RULES),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_theta=500000.0),
    requires_divisible_heads=True,
)
"""What an upcycled OLMo 2 becomes."""
