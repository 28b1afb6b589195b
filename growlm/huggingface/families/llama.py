"""Llama, Mistral, Mixtral and SmolLM3."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    EXPERT_KEYS,
    FUSED_EXPERTS,
    GQA_AND_NORM_KEYS,
    GROUPED_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    NO_BIAS,
    PRE_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
    per_expert_rules,
    router_rules,
)
from growlm.huggingface.keys.layer_keys import FULL, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys

_BIAS_KEYS = {"attention.bias": "attention_bias", "feed_forward.bias": "mlp_bias"}

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    fixed_fields=RMS_SWIGLU | {"num_experts": 0},
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS | _BIAS_KEYS,
    key_defaults=LLAMA_DEFAULTS,
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

_MISTRAL_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
}

MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    fixed_fields=RMS_SWIGLU | NO_BIAS | {"num_experts": 0},
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS,
    key_defaults=_MISTRAL_DEFAULTS,
    required_values=SILU,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(default_window=4096, writes_types=False),
)

_MIXTURE_RULES = (*ATTENTION_RULES, *PRE_NORM_RULES)

MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fixed_fields=RMS_SWIGLU | NO_BIAS,
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS | EXPERT_KEYS | {"num_experts": "num_local_experts"},
    key_defaults=_MISTRAL_DEFAULTS
    | {
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    required_values=SILU,
    tensor_layouts=(
        (
            *_MIXTURE_RULES,
            *router_rules("block_sparse_moe.gate"),
            *per_expert_rules("block_sparse_moe", "w1", "w2", "w3"),
        ),
        (*_MIXTURE_RULES, *router_rules("mlp.gate"), *FUSED_EXPERTS),
        (*_MIXTURE_RULES, *router_rules("mlp.gate"), *per_expert_rules("mlp", "w1", "w2", "w3")),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(writes_types=False),
    rotary=RotaryKeys(default_theta=1e6),
)

SMOLLM3 = Architecture(
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    fixed_fields=RMS_SWIGLU | {"num_experts": 0},
    field_to_key=SIZE_KEYS | GROUPED_KEYS | {"norm.eps": "rms_norm_eps"} | _BIAS_KEYS,
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
    },
    required_values=SILU | {"use_sliding_window": (False,)},
    value_names=ATTENTION_BIAS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(types=(FULL,), writes_types=False, rotary_key="no_rope_layers"),
    rotary=RotaryKeys(default_theta=2e6),
    requires_divisible_heads=True,
)
