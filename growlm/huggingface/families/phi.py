"""Phi-1 to Phi-2, and Phi-3 to Phi-4."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ACTIVATION_NAMES,
    ATTENTION_RULES,
    FUSED_GATE_RULE,
    GATED_RULES,
    GROUPED_KEYS,
    HEAD_BIAS_RULES,
    LLAMA_DEFAULTS,
    NO_BIAS,
    PRE_NORM_RULES,
    RMS_SWIGLU,
    ROTARY_BUFFERS,
    SHARED_NORM,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.layer_keys import LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import concatenated_rule, identity_rule

_BLOCK = "model.layers.{layer}"
PHI = Architecture(
    model_type="phi",
    class_name="PhiForCausalLM",
    fixed_fields=SHARED_NORM
    | {
        "norm.bias": True,
        "attention.bias": "all",
        "feed_forward.bias": True,
        "embedding.head_bias": True,
        "num_experts": 0,
    },
    field_to_key=SIZE_KEYS
    | GROUPED_KEYS
    | {"norm.eps": "layer_norm_eps", "feed_forward.kind": "hidden_act"},
    key_defaults={
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    },
    required_values={},
    value_names={"feed_forward.kind": ACTIVATION_NAMES},
    tensor_layouts=(
        (
            *HEAD_BIAS_RULES,
            identity_rule("final_norm.{kind}", "model.final_layernorm.{kind}"),
            identity_rule(
                "blocks.{layer}.attention.output.{kind}", f"{_BLOCK}.self_attn.dense.{{kind}}"
            ),
            identity_rule("blocks.{layer}.feed_forward.up.{kind}", f"{_BLOCK}.mlp.fc1.{{kind}}"),
            identity_rule("blocks.{layer}.feed_forward.down.{kind}", f"{_BLOCK}.mlp.fc2.{{kind}}"),
            *ATTENTION_RULES,
            *PRE_NORM_RULES,
        ),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_fraction=0.5, allows_fraction=True),
    requires_divisible_heads=True,
)
"""Phi-1, Phi-1.5 and Phi-2."""

_FUSED_RULES = (
    concatenated_rule(
        {
            "blocks.{layer}.attention.query.weight": "query_heads",
            "blocks.{layer}.attention.key.weight": "key_value_heads",
            "blocks.{layer}.attention.value.weight": "key_value_heads",
        },
        "model.layers.{layer}.self_attn.qkv_proj.weight",
    ),
    FUSED_GATE_RULE,
)

PHI3 = Architecture(
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    fixed_fields=RMS_SWIGLU | NO_BIAS | {"num_experts": 0},
    field_to_key=SIZE_KEYS | GROUPED_KEYS | {"norm.eps": "rms_norm_eps"},
    key_defaults=LLAMA_DEFAULTS
    | {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    required_values=SILU,
    tensor_layouts=((*_FUSED_RULES, *ATTENTION_RULES, *PRE_NORM_RULES, *GATED_RULES),),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(writes_types=False),
    rotary=RotaryKeys(
        allows_fraction=True,
        kinds=("longrope",),
        kind_aliases={"su": "longrope", "yarn": "longrope"},  # its class reads both so
        original_length_key="original_max_position_embeddings",
    ),
    requires_divisible_heads=True,
)
