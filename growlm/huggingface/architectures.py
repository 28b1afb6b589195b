"""Describe the transformers architectures that growlm can import and export, in one table each.

A table lists the keys of `config.json` that correspond to `ModelConfig` fields, the keys that must have a certain
value, and the mapping rules of the tensors. Import and export use nothing else.

Sources: the classes of transformers 5 (`models/{llama,mistral,mixtral,qwen2,qwen3,qwen3_moe,gpt_neox}`), and the
layouts of the files that Meta, Mistral AI, Alibaba and EleutherAI published under these names.
"""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture
from growlm.huggingface.mapping_rules import (
    MappingRule,
    absent_rule,
    fused_rule,
    identity_rule,
    stacked_rule,
)
from growlm.huggingface.rope_keys import RotaryKeys
from growlm.model.config import ModelConfig

_SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
_GQA_AND_NORM_KEYS = {
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm.eps": "rms_norm_eps",
}

_LLAMA_RULES = (
    identity_rule("embedding.weight", "model.embed_tokens.weight"),
    identity_rule("final_norm.weight", "model.norm.weight"),
    identity_rule("head.weight", "lm_head.weight"),
    identity_rule(
        "blocks.{layer}.attention_norm.weight", "model.layers.{layer}.input_layernorm.weight"
    ),
    identity_rule(
        "blocks.{layer}.feed_forward_norm.weight",
        "model.layers.{layer}.post_attention_layernorm.weight",
    ),
    identity_rule(
        "blocks.{layer}.attention.query.{kind}", "model.layers.{layer}.self_attn.q_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.attention.key.{kind}", "model.layers.{layer}.self_attn.k_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.attention.value.{kind}", "model.layers.{layer}.self_attn.v_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.attention.output.{kind}", "model.layers.{layer}.self_attn.o_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.gate.{kind}", "model.layers.{layer}.mlp.gate_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.up.{kind}", "model.layers.{layer}.mlp.up_proj.{kind}"
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.down.{kind}", "model.layers.{layer}.mlp.down_proj.{kind}"
    ),
)
_NO_SELECTION_BIAS = absent_rule("blocks.{layer}.feed_forward.selection_bias", "num_experts")


def _mixtral_rules(block: str, experts: tuple[MappingRule, ...]) -> tuple[MappingRule, ...]:
    router = identity_rule(
        "blocks.{layer}.feed_forward.router.weight",
        f"model.layers.{{layer}}.{block}.gate.weight",
    )
    return (*_LLAMA_RULES, router, _NO_SELECTION_BIAS, *experts)


def _per_expert_rules(
    block: str, gate: str = "w1", down: str = "w2", up: str = "w3"
) -> tuple[MappingRule, ...]:
    """Return the rules of a layout with separate tensors per expert; the default names are Mixtral's."""
    expert = f"model.layers.{{layer}}.{block}.experts.{{expert}}"
    return (
        stacked_rule("blocks.{layer}.feed_forward.experts.gate", f"{expert}.{gate}.weight"),
        stacked_rule("blocks.{layer}.feed_forward.experts.down", f"{expert}.{down}.weight"),
        stacked_rule("blocks.{layer}.feed_forward.experts.up", f"{expert}.{up}.weight"),
    )


_FUSED_EXPERT_RULES = (
    fused_rule(
        (
            "blocks.{layer}.feed_forward.experts.gate",
            "blocks.{layer}.feed_forward.experts.up",
        ),
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        dim=1,
    ),
    identity_rule(
        "blocks.{layer}.feed_forward.experts.down",
        "model.layers.{layer}.mlp.experts.down_proj",
    ),
)

_RMS_SWIGLU = {"norm.kind": "rmsnorm", "norm.bias": False, "feed_forward.kind": "swiglu"}
_NO_BIAS = {"attention.bias": "none", "feed_forward.bias": False}
_SILU = {"hidden_act": ("silu", "swish")}
_ATTENTION_BIAS = {"attention_bias": {False: "none", True: "all"}}
_ROTARY_BUFFERS = (r".*rotary_emb\.inv_freq",)

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    fixed_fields=_RMS_SWIGLU | {"num_experts": 0},
    field_to_key=_SIZE_KEYS
    | _GQA_AND_NORM_KEYS
    | {"attention.bias": "attention_bias", "feed_forward.bias": "mlp_bias"},
    key_defaults={
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    required_values=_SILU,
    value_names=_ATTENTION_BIAS,
    tensor_layouts=(_LLAMA_RULES,),
    ignored_tensors=_ROTARY_BUFFERS,
    requires_divisible_heads=True,
)

MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    fixed_fields=_RMS_SWIGLU | _NO_BIAS | {"num_experts": 0},
    field_to_key=_SIZE_KEYS | _GQA_AND_NORM_KEYS,
    key_defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "sliding_window": 4096,
    },
    required_values=_SILU,
    tensor_layouts=(_LLAMA_RULES,),
    ignored_tensors=_ROTARY_BUFFERS,
)

MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fixed_fields=_RMS_SWIGLU | _NO_BIAS,
    field_to_key=_SIZE_KEYS
    | _GQA_AND_NORM_KEYS
    | {
        "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok",
        "routing.balance_weight": "router_aux_loss_coef",
    },
    key_defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
    },
    required_values=_SILU,
    tensor_layouts=(
        _mixtral_rules("block_sparse_moe", _per_expert_rules("block_sparse_moe")),
        _mixtral_rules("mlp", _FUSED_EXPERT_RULES),
        _mixtral_rules("mlp", _per_expert_rules("mlp")),
    ),
    ignored_tensors=_ROTARY_BUFFERS,
    rotary=RotaryKeys(default_theta=1e6),
)


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
    field_to_key=_SIZE_KEYS
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
    ignored_tensors=(*_ROTARY_BUFFERS, r".*\.attention\.(masked_)?bias"),
    rotary=RotaryKeys(
        theta_key="rotary_emb_base",
        fraction_key="rotary_pct",
        default_fraction=0.25,
        allows_fraction=True,
    ),
)

_QWEN_DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
_QWEN_REQUIRED = _SILU | {"use_sliding_window": (False,)}

QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    fixed_fields=_RMS_SWIGLU
    | {"attention.bias": "qkv", "feed_forward.bias": False, "num_experts": 0},
    field_to_key=_SIZE_KEYS | _GQA_AND_NORM_KEYS,
    key_defaults=_QWEN_DEFAULTS | {"num_key_value_heads": 32, "head_dim": None},
    required_values=_QWEN_REQUIRED,
    tensor_layouts=(_LLAMA_RULES,),
    ignored_tensors=_ROTARY_BUFFERS,
)

_QK_NORM_RULES = tuple(
    identity_rule(
        f"blocks.{{layer}}.attention.{ours}_norm.weight",
        f"model.layers.{{layer}}.self_attn.{theirs}_norm.weight",
    )
    for ours, theirs in (("query", "q"), ("key", "k"))
)

QWEN3 = Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    fixed_fields=_RMS_SWIGLU
    | {"attention.qk_norm": "head", "feed_forward.bias": False, "num_experts": 0},
    field_to_key=_SIZE_KEYS | _GQA_AND_NORM_KEYS | {"attention.bias": "attention_bias"},
    value_names=_ATTENTION_BIAS,
    key_defaults=_QWEN_DEFAULTS
    | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    required_values=_QWEN_REQUIRED,
    tensor_layouts=((*_LLAMA_RULES, *_QK_NORM_RULES),),
    ignored_tensors=_ROTARY_BUFFERS,
)

_QWEN_EXPERTS = _per_expert_rules("mlp", "gate_proj", "down_proj", "up_proj")

QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    fixed_fields=_RMS_SWIGLU | {"attention.qk_norm": "head", "feed_forward.bias": False},
    field_to_key=_SIZE_KEYS
    | _GQA_AND_NORM_KEYS
    | {
        "attention.bias": "attention_bias",
        "d_ff": "moe_intermediate_size",
        "num_experts": "num_experts",
        "top_k": "num_experts_per_tok",
        "routing.balance_weight": "router_aux_loss_coef",
    },
    key_aliases={"num_local_experts": "num_experts"},
    value_names=_ATTENTION_BIAS,
    key_defaults=_QWEN_DEFAULTS
    | {
        "num_key_value_heads": 4,
        "head_dim": None,
        "attention_bias": False,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "router_aux_loss_coef": 0.001,
    },
    required_values=_QWEN_REQUIRED
    | {
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
    },
    tensor_layouts=(
        (*_mixtral_rules("mlp", _QWEN_EXPERTS), *_QK_NORM_RULES),
        (*_mixtral_rules("mlp", _FUSED_EXPERT_RULES), *_QK_NORM_RULES),
    ),
    ignored_tensors=_ROTARY_BUFFERS,
)

GROWLM = Architecture(
    model_type="growlm",
    class_name="GrowLMForCausalLM",
    fixed_fields={},
    field_to_key=_SIZE_KEYS
    | {
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok",
    }
    | {name: name for name in ModelConfig.part_types()},
    key_defaults={},
    required_values={},
    tensor_layouts=((identity_rule("{name}", "model.{name}"),),),
    rotary=None,
)
"""growlm's own architecture, for any model: transformers loads its class from growlm through `auto_map`."""

ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, GPT_NEOX, GROWLM)
"""All architectures, in the order in which an export tries them."""

assert set(GROWLM.field_to_key) == set(ModelConfig.__dataclass_fields__)
