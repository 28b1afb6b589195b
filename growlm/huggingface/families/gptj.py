"""GPT-J and CodeGen."""

from __future__ import annotations

from dataclasses import replace

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ACTIVATION_NAMES,
    GPT2_KEYS,
    HEAD_BIAS_RULES,
    SHARED_NORM,
)
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import MappingRule, fused_rule, identity_rule

_BLOCK, _THEIRS = "blocks.{layer}", "transformer.h.{layer}"


def _attention_rule(name: str, hf_name: str) -> MappingRule:
    return identity_rule(f"{_BLOCK}.attention.{name}.weight", f"{_THEIRS}.attn.{hf_name}.weight")


_RULES = (
    identity_rule("embedding.weight", "transformer.wte.weight"),
    identity_rule("final_norm.{kind}", "transformer.ln_f.{kind}"),
    identity_rule("head.weight", "lm_head.weight"),
    *HEAD_BIAS_RULES,
    identity_rule(f"{_BLOCK}.attention_norm.{{kind}}", f"{_THEIRS}.ln_1.{{kind}}"),
    _attention_rule("output", "out_proj"),
    identity_rule(f"{_BLOCK}.feed_forward.up.{{kind}}", f"{_THEIRS}.mlp.fc_in.{{kind}}"),
    identity_rule(f"{_BLOCK}.feed_forward.down.{{kind}}", f"{_THEIRS}.mlp.fc_out.{{kind}}"),
)
_SEPARATE = (
    _attention_rule("query", "q_proj"),
    _attention_rule("key", "k_proj"),
    _attention_rule("value", "v_proj"),
)
_NUM_SHARDS = 4
"""CodeGen's projections are in the order of the four devices that its first training had."""
_FUSED = fused_rule(
    [f"{_BLOCK}.attention.{name}.weight" for name in ("query", "value", "key")],
    f"{_THEIRS}.attn.qkv_proj.weight",
    dim=0,
    groups=_NUM_SHARDS,
)

GPTJ = Architecture(
    model_type="gptj",
    class_name="GPTJForCausalLM",
    fixed_fields=SHARED_NORM
    | {
        "norm.bias": True,
        "attention.bias": "none",
        "feed_forward.bias": True,
        "rope.interleaved": True,
        "embedding.head_bias": True,
        "num_experts": 0,
    },
    field_to_key=GPT2_KEYS,
    key_defaults={
        "n_positions": 2048,
        "rotary_dim": 64,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    },
    required_values={},
    value_names={"feed_forward.kind": ACTIVATION_NAMES},
    tensor_layouts=((*_RULES, *_SEPARATE),),
    ignored_tensors=(r"transformer\.h\.\d+\.attn\.((masked_)?bias|causal_mask|scale_attn)",),
    rotary=RotaryKeys(size_key="rotary_dim"),
    requires_divisible_heads=True,
)

CODEGEN = replace(
    GPTJ,
    model_type="codegen",
    class_name="CodeGenForCausalLM",
    tensor_layouts=((*_RULES, _FUSED),),
    heads_multiple=_NUM_SHARDS,
)
"""GPT-J with queries, keys and values in one tensor."""
