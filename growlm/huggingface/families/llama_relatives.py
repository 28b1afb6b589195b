"""Classes like Llama's: ERNIE 4.5 (dense), Seed-OSS, Arcee, Helium, Ministral, CWM and EXAONE 4."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    ATTENTION_RULES,
    GATED_RULES,
    GQA_AND_NORM_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    NO_BIAS,
    POST_NORM_RULES,
    QK_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.layer_keys import FULL, WINDOW, LayerKeys
from growlm.huggingface.keys.rope_keys import PARAMETERS_KEY, RotaryKeys

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
    value_names=ATTENTION_BIAS,
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

ARCEE = Architecture(
    model_type="arcee",
    class_name="ArceeForCausalLM",
    fixed_fields=_FIXED | {"feed_forward.kind": "relu2"},
    field_to_key=_KEYS | {"attention.bias": "attention_bias", "feed_forward.bias": "mlp_bias"},
    key_defaults=LLAMA_DEFAULTS
    | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
    required_values={"hidden_act": ("relu2",)},
    value_names=ATTENTION_BIAS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

HELIUM = Architecture(
    model_type="helium",
    class_name="HeliumForCausalLM",
    fixed_fields=_FIXED | {"rope.interleaved": True},
    field_to_key=_KEYS | {"attention.bias": "attention_bias", "feed_forward.bias": "mlp_bias"},
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 4096,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "rms_norm_eps": 1e-8,
    },
    required_values=SILU,
    value_names={"attention.bias": {False: "none", True: "qkv"}},
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_theta=100000.0),
    requires_square_output=True,
)

MINISTRAL = Architecture(
    model_type="ministral",
    class_name="MinistralForCausalLM",
    fixed_fields=_FIXED | NO_BIAS,
    field_to_key=_KEYS,
    key_defaults=LLAMA_DEFAULTS | {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    required_values=SILU,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(default_window=4096, needs_window=True),
)

CWM = Architecture(
    model_type="cwm",
    class_name="CwmForCausalLM",
    fixed_fields=_FIXED | {"attention.bias": "none"},
    field_to_key=_KEYS | {"feed_forward.bias": "mlp_bias"},
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        PARAMETERS_KEY: {
            "rope_type": "llama3",
            "rope_theta": 1e6,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    required_values=SILU,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(types=(FULL, WINDOW, WINDOW, WINDOW), default_window=8192, needs_window=True),
    rotary=RotaryKeys(default_theta=1e6),
    requires_divisible_heads=True,
)

EXAONE4 = Architecture(
    model_type="exaone4",
    class_name="Exaone4ForCausalLM",
    fixed_fields=_FIXED | NO_BIAS | {"norm.placement": "post", "attention.qk_norm": "head"},
    field_to_key=_KEYS,
    key_defaults=LLAMA_DEFAULTS
    | {"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window_pattern": 4},
    required_values=SILU,
    tensor_layouts=((*ATTENTION_RULES, *POST_NORM_RULES, *QK_NORM_RULES, *GATED_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(
        period_key="sliding_window_pattern",
        default_window=4096,
        rotates_windows_only=True,
        rotates_without_length=True,
    ),
)
