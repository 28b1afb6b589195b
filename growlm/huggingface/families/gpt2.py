"""GPT-2 and GPT-BigCode (StarCoder 1, SantaCoder)."""

from __future__ import annotations

from dataclasses import replace

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import ACTIVATION_NAMES, GPT2_KEYS
from growlm.huggingface.keys.layer_keys import NO_WINDOWS
from growlm.huggingface.mapping_rules import (
    MappingRule,
    concatenated_rule,
    fused_rule,
    identity_rule,
    transposed_rule,
)

_PROJECTIONS = tuple(
    f"blocks.{{layer}}.attention.{name}.{{kind}}" for name in ("query", "key", "value")
)


def _outer_rules(prefix: str) -> tuple[MappingRule, ...]:
    """Return the rules of the embeddings and norms in a layout whose names begin with the prefix."""
    ours, theirs = "blocks.{layer}", f"{prefix}h.{{layer}}"
    return (
        identity_rule("embedding.weight", f"{prefix}wte.weight"),
        identity_rule("position_embedding.weight", f"{prefix}wpe.weight"),
        identity_rule("final_norm.{kind}", f"{prefix}ln_f.{{kind}}"),
        identity_rule("head.weight", "lm_head.weight"),
        identity_rule(f"{ours}.attention_norm.{{kind}}", f"{theirs}.ln_1.{{kind}}"),
        identity_rule(f"{ours}.feed_forward_norm.{{kind}}", f"{theirs}.ln_2.{{kind}}"),
    )


def _inner_rules(prefix: str) -> tuple[MappingRule, ...]:
    """Return the rules of the projections but those of queries, keys and values."""
    names = {
        "attention.output": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    return tuple(
        identity_rule(f"blocks.{{layer}}.{ours}.{{kind}}", f"{prefix}h.{{layer}}.{theirs}.{{kind}}")
        for ours, theirs in names.items()
    )


def _gpt2_rules(prefix: str) -> tuple[MappingRule, ...]:
    attention = fused_rule(_PROJECTIONS, f"{prefix}h.{{layer}}.attn.c_attn.{{kind}}", dim=0)
    # OpenAI's "Conv1D" layers hold their matrices transposed.
    transposed = map(transposed_rule, (attention, *_inner_rules(prefix)))
    return (*_outer_rules(prefix), *transposed)


def _gpt_bigcode_rules(prefix: str) -> tuple[MappingRule, ...]:
    axes = ("query_heads", "key_value_heads", "key_value_heads")
    rows = dict(zip(_PROJECTIONS, axes, strict=True))
    attention = concatenated_rule(rows, f"{prefix}h.{{layer}}.attn.c_attn.{{kind}}")
    return (*_outer_rules(prefix), attention, *_inner_rules(prefix))


_ATTENTION_BIAS_TABLES = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"

GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    fixed_fields={
        "norm.kind": "layernorm",
        "norm.bias": True,
        "feed_forward.bias": True,
        "attention.bias": "all",
        "embedding.positions": "learned",
        "num_experts": 0,
    },
    field_to_key=GPT2_KEYS,
    key_defaults={
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    required_values={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    value_names={"feed_forward.kind": ACTIVATION_NAMES},
    tensor_layouts=(_gpt2_rules("transformer."), _gpt2_rules("")),
    ignored_tensors=(_ATTENTION_BIAS_TABLES,),
    layers=NO_WINDOWS,
    rotary=None,
)

GPT_BIGCODE = replace(
    GPT2,
    model_type="gpt_bigcode",
    class_name="GPTBigCodeForCausalLM",
    fixed_fields={**GPT2.fixed_fields, "n_kv_heads": 1},
    key_defaults={
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "multi_query": True,
    },
    value_names={"feed_forward.kind": {"gelu_pytorch_tanh": "gelu_tanh"} | ACTIVATION_NAMES},
    required_values={"scale_attn_weights": (True,), "multi_query": (True,)},
    tensor_layouts=(_gpt_bigcode_rules("transformer."), _gpt_bigcode_rules("")),
)
