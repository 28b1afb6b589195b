"""GPT-NeoX and Pythia."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import ROTARY_BUFFERS, SIZE_KEYS
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import MappingRule, fused_rule, identity_rule


def _gpt_neox_rules(head: str) -> tuple[MappingRule, ...]:
    layer = "gpt_neox.layers.{layer}"
    return (
        identity_rule("embedding.weight", "gpt_neox.embed_in.weight"),
        identity_rule("final_norm.{kind}", "gpt_neox.final_layer_norm.{kind}"),
        identity_rule("head.weight", head),
        identity_rule("blocks.{layer}.attention_norm.{kind}", f"{layer}.input_layernorm.{{kind}}"),
        identity_rule(
            "blocks.{layer}.feed_forward_norm.{kind}", f"{layer}.post_attention_layernorm.{{kind}}"
        ),
        fused_rule(
            (
                "blocks.{layer}.attention.query.{kind}",
                "blocks.{layer}.attention.key.{kind}",
                "blocks.{layer}.attention.value.{kind}",
            ),
            f"{layer}.attention.query_key_value.{{kind}}",
            dim=0,
            groups_field="n_heads",
        ),
        identity_rule(
            "blocks.{layer}.attention.output.{kind}", f"{layer}.attention.dense.{{kind}}"
        ),
        identity_rule(
            "blocks.{layer}.feed_forward.up.{kind}", f"{layer}.mlp.dense_h_to_4h.{{kind}}"
        ),
        identity_rule(
            "blocks.{layer}.feed_forward.down.{kind}", f"{layer}.mlp.dense_4h_to_h.{{kind}}"
        ),
    )


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    fixed_fields={
        "norm.kind": "layernorm",
        "norm.bias": True,
        "feed_forward.kind": "gelu",
        "feed_forward.bias": True,
        "attention.bias": "all",
        "num_experts": 0,
    },
    field_to_key=SIZE_KEYS
    | {"norm.eps": "layer_norm_eps", "norm.parallel_residual": "use_parallel_residual"},
    key_defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "attention_bias": True,
    },
    required_values={
        "hidden_act": ("gelu", "gelu_python"),
        "attention_bias": (True,),
    },
    tensor_layouts=(_gpt_neox_rules("embed_out.weight"), _gpt_neox_rules("lm_head.weight")),
    ignored_tensors=(*ROTARY_BUFFERS, r".*\.attention\.(masked_)?bias"),
    rotary=RotaryKeys(
        theta_key="rotary_emb_base",
        fraction_key="rotary_pct",
        default_fraction=0.25,
        allows_fraction=True,
    ),
)
