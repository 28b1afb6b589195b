"""ERNIE 4.5, dense."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    GQA_AND_NORM_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.rope_keys import RotaryKeys

_BIAS_KEYS = {"attention.bias": "use_bias", "feed_forward.bias": "use_bias"}

ERNIE4_5 = Architecture(
    model_type="ernie4_5",
    class_name="Ernie4_5ForCausalLM",
    fixed_fields=RMS_SWIGLU | {"rope.interleaved": True, "num_experts": 0},
    field_to_key=SIZE_KEYS | GQA_AND_NORM_KEYS | _BIAS_KEYS,
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    required_values=SILU,
    value_names={"attention.bias": {False: "none", True: "all"}},
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_theta=500000.0),
)
