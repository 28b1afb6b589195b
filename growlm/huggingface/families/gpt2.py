"""GPT-2."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import ACTIVATION_NAMES
from growlm.huggingface.keys.layer_keys import NO_WINDOWS
from growlm.huggingface.mapping_rules import (
    MappingRule,
    fused_rule,
    identity_rule,
    transposed_rule,
)


def _rules(prefix: str) -> tuple[MappingRule, ...]:
    """Return the rules of the layout whose names begin with the prefix."""
    ours, theirs = "blocks.{layer}", f"{prefix}h.{{layer}}"
    projections = tuple(f"{ours}.attention.{name}.{{kind}}" for name in ("query", "key", "value"))

    def conv_rule(growlm_name: str, hf_name: str) -> MappingRule:
        # OpenAI's "Conv1D" layers hold their matrices transposed.
        return transposed_rule(
            identity_rule(f"{ours}.{growlm_name}.{{kind}}", f"{theirs}.{hf_name}.{{kind}}")
        )

    return (
        identity_rule("embedding.weight", f"{prefix}wte.weight"),
        identity_rule("position_embedding.weight", f"{prefix}wpe.weight"),
        identity_rule("final_norm.{kind}", f"{prefix}ln_f.{{kind}}"),
        identity_rule("head.weight", "lm_head.weight"),
        identity_rule(f"{ours}.attention_norm.{{kind}}", f"{theirs}.ln_1.{{kind}}"),
        identity_rule(f"{ours}.feed_forward_norm.{{kind}}", f"{theirs}.ln_2.{{kind}}"),
        transposed_rule(fused_rule(projections, f"{theirs}.attn.c_attn.{{kind}}", dim=0)),
        conv_rule("attention.output", "attn.c_proj"),
        conv_rule("feed_forward.up", "mlp.c_fc"),
        conv_rule("feed_forward.down", "mlp.c_proj"),
    )


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
    field_to_key={
        "vocab_size": "vocab_size",
        "d_model": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_ff": "n_inner",
        "max_seq_len": "n_positions",
        "tie_embeddings": "tie_word_embeddings",
        "norm.eps": "layer_norm_epsilon",
        "feed_forward.kind": "activation_function",
    },
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
    tensor_layouts=(_rules("transformer."), _rules("")),
    ignored_tensors=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
    layers=NO_WINDOWS,
    rotary=None,
)
