"""Command-R and Command R7B."""

from __future__ import annotations

from dataclasses import replace

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ATTENTION_BIAS,
    GROUPED_KEYS,
    LLAMA_DEFAULTS,
    LLAMA_RULES,
    ROTARY_BUFFERS,
    SHARED_NORM,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.layer_keys import FULL, WINDOW, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys

COHERE = Architecture(
    model_type="cohere",
    class_name="CohereForCausalLM",
    fixed_fields=SHARED_NORM
    | {
        "norm.bias": False,
        "feed_forward.kind": "swiglu",
        "feed_forward.bias": False,
        "rope.interleaved": True,
        "num_experts": 0,
    },
    field_to_key=SIZE_KEYS
    | GROUPED_KEYS
    | {
        "norm.eps": "layer_norm_eps",
        "attention.bias": "attention_bias",
        "embedding.logit_multiplier": "logit_scale",
    },
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    required_values=SILU,
    value_names=ATTENTION_BIAS,
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_theta=500000.0),
    requires_divisible_heads=True,
)

COHERE2 = replace(
    COHERE,
    model_type="cohere2",
    class_name="Cohere2ForCausalLM",
    layers=LayerKeys(
        types=(WINDOW, WINDOW, WINDOW, FULL),
        period_key="sliding_window_pattern",
        default_window=4096,
        needs_window=True,
        rotates_windows_only=True,
    ),
)
"""Command R7B: most blocks have a window, and only those rotate."""
