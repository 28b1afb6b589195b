"""Classes that differ from Llama's in single keys: ERNIE 4.5 (dense) and Seed-OSS."""

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

_KEYS = SIZE_KEYS | GQA_AND_NORM_KEYS
_FIXED = RMS_SWIGLU | {"num_experts": 0}

ERNIE4_5 = Architecture(
    model_type="ernie4_5",
    class_name="Ernie4_5ForCausalLM",
    fixed_fields=_FIXED | {"rope.interleaved": True},
    field_to_key=_KEYS | {"attention.bias": "use_bias", "feed_forward.bias": "use_bias"},
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

SEED_OSS = Architecture(
    model_type="seed_oss",
    class_name="SeedOssForCausalLM",
    fixed_fields=_FIXED,
    field_to_key=_KEYS
    | {"attention.bias": "attention_bias attention_out_bias", "feed_forward.bias": "mlp_bias"},
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "attention_out_bias": False,
    },
    required_values=SILU,
    value_names={
        "attention.bias": {(False, False): "none", (True, False): "qkv", (True, True): "all"}
    },
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
)
