"""Qwen2 and 2.5, Qwen3, and their mixtures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    EXPERT_KEYS,
    GATED_RULES,
    GQA_AND_NORM_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    PRE_NORM_RULES,
    QK_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
    mixture_layouts,
)
from growlm.huggingface.keys.layer_keys import NO_WINDOWS, LayerKeys
from growlm.huggingface.mapping_rules import identity_rule, zero_rule

_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_FIXED = RMS_SWIGLU | {"feed_forward.bias": False}
_LAYERS = LayerKeys(
    default_window=4096, enabled_key="use_sliding_window", first_key="max_window_layers"
)

QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    fixed_fields=_FIXED | {"attention.bias": "qkv", "num_experts": 0},
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS,
    key_defaults=_DEFAULTS,
    required_values=SILU,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    layers=_LAYERS,
)

QWEN3 = Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    fixed_fields=_FIXED | {"attention.qk_norm": "head", "num_experts": 0},
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS | {"attention.bias": "attention_bias"},
    key_defaults=_DEFAULTS | {"head_dim": 128},
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=((*LLAMA_RULES, *QK_NORM_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    layers=_LAYERS,
)

_MIXTURE_KEYS = (
    SIZE_KEYS
    | GQA_AND_NORM_KEYS
    | EXPERT_KEYS
    | {"d_ff": "moe_intermediate_size", "routing.renormalize": "norm_topk_prob"}
)
_MIXTURE_DEFAULTS = _DEFAULTS | {
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "router_aux_loss_coef": 0.001,
}
_NO_WINDOWS: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False,)}
_MIXTURE_LAYERS = replace(NO_WINDOWS, dense_key="mlp_only_layers")
_MIXTURE_RULES = (*ATTENTION_RULES, *PRE_NORM_RULES, *GATED_RULES)

QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    fixed_fields=_FIXED | {"attention.qk_norm": "head"},
    field_to_key=_MIXTURE_KEYS | {"attention.bias": "attention_bias"},
    key_aliases={"num_local_experts": "num_experts"},
    value_names=ATTENTION_BIAS,
    key_defaults=_MIXTURE_DEFAULTS
    | {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    required_values=SILU | _NO_WINDOWS,
    tensor_layouts=mixture_layouts(*_MIXTURE_RULES, *QK_NORM_RULES),
    ignored_tensors=ROTARY_BUFFERS,
    layers=_MIXTURE_LAYERS,
)

_SHARED_EXPERT = "mlp.shared_expert"
_SHARED_RULES = (
    *(
        identity_rule(
            f"blocks.{{layer}}.feed_forward.shared.{name}.weight",
            f"model.layers.{{layer}}.{_SHARED_EXPERT}.{name}_proj.weight",
        )
        for name in ("gate", "up", "down")
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.shared_gate.weight",
        f"model.layers.{{layer}}.{_SHARED_EXPERT}_gate.weight",
    ),
)

QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    class_name="Qwen2MoeForCausalLM",
    fixed_fields=_FIXED | {"attention.bias": "qkv", "routing.shared_gate": True},
    field_to_key=_MIXTURE_KEYS | {"shared_d_ff": "shared_expert_intermediate_size"},
    key_defaults=_MIXTURE_DEFAULTS
    | {
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "qkv_bias": True,
    },
    required_values=SILU | _NO_WINDOWS | {"qkv_bias": (True,)},
    tensor_layouts=mixture_layouts(*_MIXTURE_RULES, *_SHARED_RULES),
    ignored_tensors=ROTARY_BUFFERS,
    layers=_MIXTURE_LAYERS,
)

_UNUSED_D_FF = 8
_UNUSED = f"model.layers.{{layer}}.{_SHARED_EXPERT}"
_ZERO_RULES = (
    zero_rule(f"{_UNUSED}.gate_proj.weight", _UNUSED_D_FF, "d_model"),
    zero_rule(f"{_UNUSED}.up_proj.weight", _UNUSED_D_FF, "d_model"),
    zero_rule(f"{_UNUSED}.down_proj.weight", "d_model", _UNUSED_D_FF),
    zero_rule(f"{_UNUSED}_gate.weight", 1, "d_model"),
)

QWEN2_UPCYCLED = replace(
    QWEN2_MOE,
    fixed_fields=_FIXED | {"attention.bias": "qkv"},
    field_to_key=_MIXTURE_KEYS,
    required_values={
        **QWEN2_MOE.required_values,
        "shared_expert_intermediate_size": (_UNUSED_D_FF,),
    },
    tensor_layouts=mixture_layouts(*_MIXTURE_RULES, *_ZERO_RULES),
    own_fields={"shared_d_ff": 0},
)
"""An upcycled Qwen2 in Qwen2-MoE's class, which needs a shared expert: it is small, and zero."""
