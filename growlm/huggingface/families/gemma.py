"""Gemma 1, 2 and 3 (text), and VaultGemma."""

from __future__ import annotations

from dataclasses import replace

from growlm.huggingface.architecture import INVERSE_SQUARE_ROOT, Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    BOTH_NORM_RULES,
    GATED_RULES,
    GQA_AND_NORM_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    QK_NORM_RULES,
    ROTARY_BUFFERS,
    SIZE_KEYS,
)
from growlm.huggingface.keys.layer_keys import FULL, WINDOW, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys

_FIXED = {
    "norm.kind": "rmsnorm",
    "norm.bias": False,
    "norm.gain_offset": 1.0,
    "feed_forward.kind": "geglu_tanh",
    "feed_forward.bias": False,
    "embedding.scale_by_width": True,
    "num_experts": 0,
}
_KEYS = SIZE_KEYS | GQA_AND_NORM_KEYS | {"attention.bias": "attention_bias"}
_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
_CAUSAL = {"use_bidirectional_attention": (None, False)}
_CAPPED_KEYS = {
    "attention.scale": "query_pre_attn_scalar",
    "embedding.logit_softcap": "final_logit_softcapping",
}
_CAPPED_DEFAULTS = _DEFAULTS | {"num_key_value_heads": 4, "query_pre_attn_scalar": 256}
_SCALAR = {"query_pre_attn_scalar": INVERSE_SQUARE_ROOT}

GEMMA = Architecture(
    model_type="gemma",
    class_name="GemmaForCausalLM",
    fixed_fields=_FIXED,
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS | {"num_key_value_heads": 16},
    # Its class reads "gelu" as the tanh approximation, which the first releases meant by it.
    required_values=_CAUSAL
    | {
        "hidden_act": ("gelu_pytorch_tanh", "gelu"),
        "hidden_activation": ("gelu_pytorch_tanh", None),
    },
    value_names=ATTENTION_BIAS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
)

GEMMA2 = Architecture(
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    fixed_fields=_FIXED | {"norm.placement": "both"},
    field_to_key=_KEYS | _CAPPED_KEYS | {"attention.softcap": "attn_logit_softcapping"},
    key_defaults=_CAPPED_DEFAULTS
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    required_values=_CAUSAL | {"hidden_activation": ("gelu_pytorch_tanh",)},
    value_names=ATTENTION_BIAS,
    conversions=_SCALAR,
    tensor_layouts=((*ATTENTION_RULES, *BOTH_NORM_RULES, *GATED_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(types=(WINDOW, FULL), default_window=4096, needs_window=True),
    requires_divisible_heads=True,
)

VAULTGEMMA = replace(
    GEMMA2,
    model_type="vaultgemma",
    class_name="VaultGemmaForCausalLM",
    fixed_fields=_FIXED,
    required_values={"hidden_activation": ("gelu_pytorch_tanh",)},
)
"""Gemma 2 without the norms after its parts."""

GEMMA3 = Architecture(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    fixed_fields=_FIXED | {"norm.placement": "both", "attention.qk_norm": "head"},
    field_to_key=_KEYS | _CAPPED_KEYS,
    key_defaults=_CAPPED_DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
    },
    required_values=_CAUSAL | {"hidden_activation": ("gelu_pytorch_tanh",)},
    value_names=ATTENTION_BIAS,
    conversions=_SCALAR,
    tensor_layouts=((*ATTENTION_RULES, *BOTH_NORM_RULES, *QK_NORM_RULES, *GATED_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(period_key="sliding_window_pattern", default_window=4096, needs_window=True),
    rotary=RotaryKeys(
        default_theta=1e6,
        window_theta_key="rope_local_base_freq",
        default_window_theta=10000.0,
        is_nested=True,
    ),
    requires_divisible_heads=True,
)
