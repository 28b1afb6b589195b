"""Falcon: 7B, whose heads share one key and value, and the decoder of 40B, 180B and Falcon2."""

from __future__ import annotations

from typing import Any

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ACTIVATION_NAMES,
    ATTENTION_BIAS,
    ROTARY_BUFFERS,
    SHARED_NORM,
    SIZE_KEYS,
)
from growlm.huggingface.mapping_rules import concatenated_rule, identity_rule, rule_if

_BLOCK, _THEIRS = "blocks.{layer}", "transformer.h.{layer}"
_RULES = (
    identity_rule("embedding.weight", "transformer.word_embeddings.weight"),
    identity_rule("final_norm.{kind}", "transformer.ln_f.{kind}"),
    identity_rule("head.weight", "lm_head.weight"),
    concatenated_rule(
        {
            f"{_BLOCK}.attention.query.{{kind}}": "query_heads",
            f"{_BLOCK}.attention.key.{{kind}}": "key_value_heads",
            f"{_BLOCK}.attention.value.{{kind}}": "key_value_heads",
        },
        f"{_THEIRS}.self_attention.query_key_value.{{kind}}",
        groups_field="n_kv_heads",
    ),
    identity_rule(
        f"{_BLOCK}.attention.output.{{kind}}", f"{_THEIRS}.self_attention.dense.{{kind}}"
    ),
    identity_rule(f"{_BLOCK}.feed_forward.up.{{kind}}", f"{_THEIRS}.mlp.dense_h_to_4h.{{kind}}"),
    identity_rule(f"{_BLOCK}.feed_forward.down.{{kind}}", f"{_THEIRS}.mlp.dense_4h_to_h.{{kind}}"),
    rule_if(
        ("norm.shared", True),
        identity_rule(f"{_BLOCK}.attention_norm.{{kind}}", f"{_THEIRS}.input_layernorm.{{kind}}"),
    ),
    identity_rule(f"{_BLOCK}.attention_norm.{{kind}}", f"{_THEIRS}.ln_attn.{{kind}}"),
    identity_rule(f"{_BLOCK}.feed_forward_norm.{{kind}}", f"{_THEIRS}.ln_mlp.{{kind}}"),
)
_FIXED = SHARED_NORM | {"norm.bias": True, "num_experts": 0}
_KEYS = SIZE_KEYS | {
    "d_ff": "ffn_hidden_size",
    "norm.eps": "layer_norm_epsilon",
    "attention.bias": "bias",
    "feed_forward.bias": "bias",
    "feed_forward.kind": "activation",
}
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "bias": False,
    "activation": "gelu",
    "parallel_attn": True,
    "new_decoder_architecture": False,
}
_VALUE_NAMES = ATTENTION_BIAS | {"feed_forward.kind": ACTIVATION_NAMES}

FALCON = Architecture(
    model_type="falcon",
    class_name="FalconForCausalLM",
    fixed_fields=_FIXED | {"n_kv_heads": 1},
    field_to_key=_KEYS,
    key_defaults=_DEFAULTS | {"multi_query": True},
    required_values={
        "new_decoder_architecture": (False, None),
        "multi_query": (True,),
        "parallel_attn": (True,),
        "num_ln_in_parallel_attn": (None, 1),
    },
    selecting_key="new_decoder_architecture",
    value_names=_VALUE_NAMES,
    tensor_layouts=(_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

_GROUPED_FIXED = {name: value for name, value in _FIXED.items() if name != "norm.shared"}

FALCON_GROUPED = Architecture(
    model_type="falcon",
    class_name="FalconForCausalLM",
    fixed_fields=_GROUPED_FIXED,
    field_to_key=_KEYS | {"n_kv_heads": "num_kv_heads", "norm.shared": "num_ln_in_parallel_attn"},
    key_defaults=_DEFAULTS | {"num_kv_heads": None, "num_ln_in_parallel_attn": 2},
    required_values={"new_decoder_architecture": (True,), "parallel_attn": (True,)},
    selecting_key="new_decoder_architecture",
    value_names=_VALUE_NAMES | {"norm.shared": {1: True, 2: False}},
    tensor_layouts=(_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    requires_divisible_heads=True,
)
"""The decoder with groups of heads, each with a key and value, and one norm or two."""
