"""GLM-4 and GLM-4 0414."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_RULES,
    FUSED_GATE_RULE,
    GATED_RULES,
    GQA_AND_NORM_KEYS,
    LLAMA_DEFAULTS,
    PRE_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import identity_rule

_FIXED = RMS_SWIGLU | {"feed_forward.bias": False, "rope.interleaved": True, "num_experts": 0}
_KEYS = SIZE_KEYS | GQA_AND_NORM_KEYS | {"attention.bias": "attention_bias"}
_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
}
_QKV_BIAS = {"attention.bias": {False: "none", True: "qkv"}}
_ROTARY = RotaryKeys(default_fraction=0.5, allows_fraction=True)
_RULES = (*ATTENTION_RULES, FUSED_GATE_RULE, *GATED_RULES)

GLM = Architecture(
    model_type="glm",
    class_name="GlmForCausalLM",
    fixed_fields=_FIXED,
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS,
    required_values=SILU,
    value_names=_QKV_BIAS,
    tensor_layouts=((*_RULES, *PRE_NORM_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=_ROTARY,
)

_BLOCK = "model.layers.{layer}"
_BOTH_NORM_RULES = (
    *PRE_NORM_RULES,
    identity_rule(
        "blocks.{layer}.attention_post_norm.weight", f"{_BLOCK}.post_self_attn_layernorm.weight"
    ),
    identity_rule(
        "blocks.{layer}.feed_forward_post_norm.weight", f"{_BLOCK}.post_mlp_layernorm.weight"
    ),
)

GLM4 = Architecture(
    model_type="glm4",
    class_name="Glm4ForCausalLM",
    fixed_fields=_FIXED | {"norm.placement": "both"},
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS,
    required_values=SILU,
    value_names=_QKV_BIAS,
    tensor_layouts=((*_RULES, *_BOTH_NORM_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=_ROTARY,
)
