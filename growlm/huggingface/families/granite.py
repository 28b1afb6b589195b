"""Granite 3 and its mixtures, with and without a shared expert."""

from __future__ import annotations

from dataclasses import replace

from growlm.huggingface.architecture import RECIPROCAL, Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    EXPERT_KEYS,
    GROUPED_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    PRE_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
    fused_expert_rules,
    router_rules,
)
from growlm.huggingface.mapping_rules import concatenated_rule, identity_rule

_KEYS = (
    SIZE_KEYS
    | GROUPED_KEYS
    | {
        "norm.eps": "rms_norm_eps",
        "norm.residual_multiplier": "residual_multiplier",
        "attention.bias": "attention_bias",
        "attention.scale": "attention_multiplier",
        "embedding.multiplier": "embedding_multiplier",
        "embedding.logit_multiplier": "logits_scaling",
    }
)
_DEFAULTS = LLAMA_DEFAULTS | {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
_CONVERSIONS = {"logits_scaling": RECIPROCAL}

GRANITE = Architecture(
    model_type="granite",
    class_name="GraniteForCausalLM",
    fixed_fields=RMS_SWIGLU | {"num_experts": 0},
    field_to_key=_KEYS | {"feed_forward.bias": "mlp_bias"},
    key_defaults=_DEFAULTS,
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    conversions=_CONVERSIONS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

_MIXTURE_RULES = (*ATTENTION_RULES, *PRE_NORM_RULES)
_BLOCK = "block_sparse_moe"

GRANITE_MOE = Architecture(
    model_type="granitemoe",
    class_name="GraniteMoeForCausalLM",
    fixed_fields=RMS_SWIGLU | {"feed_forward.bias": False},
    field_to_key=_KEYS | EXPERT_KEYS | {"num_experts": "num_local_experts"},
    key_defaults=_DEFAULTS
    | {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    conversions=_CONVERSIONS,
    tensor_layouts=(
        (
            *_MIXTURE_RULES,
            *router_rules(f"{_BLOCK}.router.layer"),
            *fused_expert_rules(f"{_BLOCK}.input_linear.weight", f"{_BLOCK}.output_linear.weight"),
        ),
        (  # in memory, in newer releases of transformers
            *_MIXTURE_RULES,
            *router_rules(f"{_BLOCK}.router"),
            *fused_expert_rules(f"{_BLOCK}.experts.gate_up_proj", f"{_BLOCK}.experts.down_proj"),
        ),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

_SHARED = "model.layers.{layer}.shared_mlp"
_SHARED_RULES = (
    concatenated_rule(
        {
            "blocks.{layer}.feed_forward.shared.gate.weight": "shared_hidden",
            "blocks.{layer}.feed_forward.shared.up.weight": "shared_hidden",
        },
        f"{_SHARED}.input_linear.weight",
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.shared.down.weight", f"{_SHARED}.output_linear.weight"
    ),
)

GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    model_type="granitemoeshared",
    class_name="GraniteMoeSharedForCausalLM",
    field_to_key={**GRANITE_MOE.field_to_key, "shared_d_ff": "shared_intermediate_size"},
    key_defaults={**GRANITE_MOE.key_defaults, "shared_intermediate_size": 0},
    tensor_layouts=tuple((*_SHARED_RULES, *each) for each in GRANITE_MOE.tensor_layouts),
)
