"""GPT-NeoX, StarCoder2, StableLM 2, Nemotron and OPT, which normalize with LayerNorm."""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.families.shared_tables import (
    ACTIVATION_NAMES,
    ATTENTION_BIAS,
    ATTENTION_RULES,
    GROUPED_KEYS,
    LLAMA_RULES,
    PRE_NORM_RULES,
    ROTARY_BUFFERS,
    SILU,
    SIZE_KEYS,
)
from growlm.huggingface.keys.layer_keys import NO_WINDOWS, LayerKeys
from growlm.huggingface.keys.rope_keys import RotaryKeys
from growlm.huggingface.mapping_rules import MappingRule, fused_rule, identity_rule

_FIXED = {"norm.kind": "layernorm", "norm.bias": True, "num_experts": 0}


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
    fixed_fields=_FIXED
    | {"feed_forward.kind": "gelu", "feed_forward.bias": True, "attention.bias": "all"},
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

STARCODER2 = Architecture(
    model_type="starcoder2",
    class_name="Starcoder2ForCausalLM",
    fixed_fields=_FIXED,
    field_to_key=SIZE_KEYS
    | GROUPED_KEYS
    | {
        "head_dim": "head_dim",
        "norm.eps": "norm_epsilon",
        "attention.bias": "use_bias",
        "feed_forward.bias": "use_bias",
        "feed_forward.kind": "hidden_act",
    },
    key_defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "head_dim": None,
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    required_values={},
    value_names=ATTENTION_BIAS
    | {"feed_forward.kind": {"gelu_pytorch_tanh": "gelu_tanh"} | ACTIVATION_NAMES},
    tensor_layouts=(
        (
            *ATTENTION_RULES,
            *PRE_NORM_RULES,
            identity_rule(
                "blocks.{layer}.feed_forward.up.{kind}", "model.layers.{layer}.mlp.c_fc.{kind}"
            ),
            identity_rule(
                "blocks.{layer}.feed_forward.down.{kind}", "model.layers.{layer}.mlp.c_proj.{kind}"
            ),
        ),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    layers=LayerKeys(writes_types=False),
)

STABLELM = Architecture(
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    fixed_fields=_FIXED | {"feed_forward.kind": "swiglu", "feed_forward.bias": False},
    field_to_key=SIZE_KEYS
    | GROUPED_KEYS
    | {
        "norm.eps": "layer_norm_eps",
        "norm.parallel_residual": "use_parallel_residual",
        "norm.shared": "use_parallel_residual",  # its parallel branches have one norm
        "attention.bias": "use_qkv_bias",
    },
    key_defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_parallel_residual": False,
    },
    required_values=SILU,
    value_names={"attention.bias": {False: "none", True: "qkv"}},
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_fraction=0.25, allows_fraction=True),
    requires_divisible_heads=True,
)


NEMOTRON = Architecture(
    model_type="nemotron",
    class_name="NemotronForCausalLM",
    fixed_fields=_FIXED | {"norm.gain_offset": 1.0},
    field_to_key=SIZE_KEYS
    | GROUPED_KEYS
    | {
        "head_dim": "head_dim",
        "norm.eps": "norm_eps",
        "attention.bias": "attention_bias",
        "feed_forward.bias": "mlp_bias",
        "feed_forward.kind": "hidden_act",
    },
    key_defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        "head_dim": None,
        "norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "relu2",
        "tie_word_embeddings": False,
    },
    required_values={},
    value_names=ATTENTION_BIAS | {"feed_forward.kind": {"relu2": "relu2"} | ACTIVATION_NAMES},
    tensor_layouts=(LLAMA_RULES,),
    ignored_tensors=ROTARY_BUFFERS,
    rotary=RotaryKeys(default_fraction=0.5, allows_fraction=True),
)


def _opt_rules(prefix: str) -> tuple[MappingRule, ...]:
    """Return the rules of the layout whose names begin with the prefix."""
    names = {
        "attention_norm": "self_attn_layer_norm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "feed_forward_norm": "final_layer_norm",
        "feed_forward.up": "fc1",
        "feed_forward.down": "fc2",
    }
    return (
        identity_rule("embedding.weight", f"{prefix}embed_tokens.weight"),
        identity_rule("position_embedding.weight", f"{prefix}embed_positions.weight"),
        identity_rule("final_norm.{kind}", f"{prefix}final_layer_norm.{{kind}}"),
        identity_rule("head.weight", "lm_head.weight"),
        *(
            identity_rule(
                f"blocks.{{layer}}.{ours}.{{kind}}", f"{prefix}layers.{{layer}}.{theirs}.{{kind}}"
            )
            for ours, theirs in names.items()
        ),
    )


OPT = Architecture(
    model_type="opt",
    class_name="OPTForCausalLM",
    fixed_fields=_FIXED
    | {
        "norm.eps": 1e-5,
        "embedding.positions": "learned",
        "embedding.position_offset": 2,
    },
    field_to_key=SIZE_KEYS
    | {
        "d_ff": "ffn_dim",
        "attention.bias": "enable_bias",
        "feed_forward.bias": "enable_bias",
        "feed_forward.kind": "activation_function",
    },
    key_defaults={
        "max_position_embeddings": 2048,
        "ffn_dim": 3072,
        "enable_bias": True,
        "activation_function": "relu",
        "tie_word_embeddings": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    required_values={
        "layer_norm_elementwise_affine": (True,),
        "_remove_final_layer_norm": (False,),
    },
    value_names=ATTENTION_BIAS | {"feed_forward.kind": ACTIVATION_NAMES},
    tensor_layouts=(_opt_rules("model.decoder."), _opt_rules("decoder.")),
    layers=NO_WINDOWS,
    rotary=None,
    requires_divisible_heads=True,
)
