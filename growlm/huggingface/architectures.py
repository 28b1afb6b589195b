"""The architectures of transformers that compute what a model of ours computes: one table each, read both ways.

What an architecture is made of: the keys of its `config.json` that are fields of ours, the keys that must have one
value, and the rules for its tensors. The readers and writers know nothing else about it.

Sources: the classes of transformers 5 (`models/{llama,mistral,mixtral,gpt_neox}`), and the layouts of the files
that Meta, Mistral AI and EleutherAI published under these names.
"""

from __future__ import annotations

from growlm.huggingface.architecture import Architecture, Rotary
from growlm.huggingface.mapping_rules import Rule, absent, fused, same, stacked
from growlm.model.config import ModelConfig

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
_GROUPED = {"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps"}

_LLAMA_RULES = (
    same("embedding.weight", "model.embed_tokens.weight"),
    same("final_norm.weight", "model.norm.weight"),
    same("head.weight", "lm_head.weight"),
    same("blocks.{layer}.attention_norm.weight", "model.layers.{layer}.input_layernorm.weight"),
    same(
        "blocks.{layer}.feed_forward_norm.weight",
        "model.layers.{layer}.post_attention_layernorm.weight",
    ),
    same("blocks.{layer}.attention.query.{kind}", "model.layers.{layer}.self_attn.q_proj.{kind}"),
    same("blocks.{layer}.attention.key.{kind}", "model.layers.{layer}.self_attn.k_proj.{kind}"),
    same("blocks.{layer}.attention.value.{kind}", "model.layers.{layer}.self_attn.v_proj.{kind}"),
    same("blocks.{layer}.attention.output.{kind}", "model.layers.{layer}.self_attn.o_proj.{kind}"),
    same("blocks.{layer}.feed_forward.gate.{kind}", "model.layers.{layer}.mlp.gate_proj.{kind}"),
    same("blocks.{layer}.feed_forward.up.{kind}", "model.layers.{layer}.mlp.up_proj.{kind}"),
    same("blocks.{layer}.feed_forward.down.{kind}", "model.layers.{layer}.mlp.down_proj.{kind}"),
)
_NO_BIAS = absent("blocks.{layer}.feed_forward.selection_bias", "num_experts")


def _mixtral_rules(block: str, experts: tuple[Rule, ...]) -> tuple[Rule, ...]:
    router = same(
        "blocks.{layer}.feed_forward.router.weight",
        f"model.layers.{{layer}}.{block}.gate.weight",
    )
    return (*_LLAMA_RULES, router, _NO_BIAS, *experts)


def _expert_files(block: str) -> tuple[Rule, ...]:
    """A tensor for each expert: gate, down and up are w1, w2 and w3."""
    theirs = f"model.layers.{{layer}}.{block}.experts.{{expert}}"
    return (
        stacked("blocks.{layer}.feed_forward.experts.gate", f"{theirs}.w1.weight"),
        stacked("blocks.{layer}.feed_forward.experts.down", f"{theirs}.w2.weight"),
        stacked("blocks.{layer}.feed_forward.experts.up", f"{theirs}.w3.weight"),
    )


_EXPERTS_IN_MEMORY = (
    fused(
        (
            "blocks.{layer}.feed_forward.experts.gate",
            "blocks.{layer}.feed_forward.experts.up",
        ),
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        dim=1,
    ),
    same(
        "blocks.{layer}.feed_forward.experts.down",
        "model.layers.{layer}.mlp.experts.down_proj",
    ),
)

_RMS_SWIGLU = {"norm": "rmsnorm", "feed_forward": "swiglu"}
_SILU = {"hidden_act": ("silu", "swish")}
_TABLES = (r".*rotary_emb\.inv_freq",)

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    fixed=_RMS_SWIGLU | {"num_experts": 0},
    names=_SIZES | _GROUPED | {"bias": "attention_bias mlp_bias"},
    defaults={
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    only=_SILU,
    layouts=(_LLAMA_RULES,),
    ignored=_TABLES,
    heads_divide_width=True,
)

MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    fixed=_RMS_SWIGLU | {"num_experts": 0, "bias": False},
    names=_SIZES | _GROUPED,
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "sliding_window": 4096,
    },
    only=_SILU,
    layouts=(_LLAMA_RULES,),
    ignored=_TABLES,
)

MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fixed=_RMS_SWIGLU | {"bias": False},
    names=_SIZES
    | _GROUPED
    | {
        "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok",
        "router_balance_weight": "router_aux_loss_coef",
    },
    defaults={
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
    only=_SILU,
    layouts=(
        _mixtral_rules("block_sparse_moe", _expert_files("block_sparse_moe")),
        _mixtral_rules("mlp", _EXPERTS_IN_MEMORY),
        _mixtral_rules("mlp", _expert_files("mlp")),
    ),
    ignored=_TABLES,
    rotary=Rotary(theta=1e6),
)


def _gpt_neox_rules(head: str) -> tuple[Rule, ...]:
    layer = "gpt_neox.layers.{layer}"
    return (
        same("embedding.weight", "gpt_neox.embed_in.weight"),
        same("final_norm.{kind}", "gpt_neox.final_layer_norm.{kind}"),
        same("head.weight", head),
        same("blocks.{layer}.attention_norm.{kind}", f"{layer}.input_layernorm.{{kind}}"),
        same(
            "blocks.{layer}.feed_forward_norm.{kind}", f"{layer}.post_attention_layernorm.{{kind}}"
        ),
        fused(
            (
                "blocks.{layer}.attention.query.{kind}",
                "blocks.{layer}.attention.key.{kind}",
                "blocks.{layer}.attention.value.{kind}",
            ),
            f"{layer}.attention.query_key_value.{{kind}}",
            dim=0,
            groups="n_heads",
        ),
        same("blocks.{layer}.attention.output.{kind}", f"{layer}.attention.dense.{{kind}}"),
        same("blocks.{layer}.feed_forward.up.{kind}", f"{layer}.mlp.dense_h_to_4h.{{kind}}"),
        same("blocks.{layer}.feed_forward.down.{kind}", f"{layer}.mlp.dense_4h_to_h.{{kind}}"),
    )


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    fixed={"norm": "layernorm", "feed_forward": "gelu", "bias": True, "num_experts": 0},
    names=_SIZES | {"norm_eps": "layer_norm_eps"},
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "attention_bias": True,
    },
    only={
        "hidden_act": ("gelu", "gelu_python"),
        "use_parallel_residual": (False,),
        "attention_bias": (True,),
    },
    layouts=(_gpt_neox_rules("embed_out.weight"), _gpt_neox_rules("lm_head.weight")),
    ignored=(*_TABLES, r".*\.attention\.(masked_)?bias"),
    rotary=Rotary(theta_key="rotary_emb_base", part_key="rotary_pct", part=0.25),
)

GROWLM = Architecture(
    model_type="growlm",
    class_name="GrowLMForCausalLM",
    fixed={},
    names=_SIZES
    | {
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok",
    }
    | {
        name: name
        for name in (
            "norm",
            "feed_forward",
            "bias",
            "norm_eps",
            "rope_theta",
            "router_balance_weight",
            "router_z_weight",
            "router_bias_step",
            "router_tie_breaking",
        )
    },
    defaults={},
    only={},
    layouts=((same("{name}", "model.{name}"),),),
    rotary=None,
)
"""Any model of ours: no class of transformers, but one in growlm that transformers loads by `auto_map`."""

ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, GPT_NEOX, GROWLM)
"""In the order in which an export tries them."""

assert set(GROWLM.names) == set(ModelConfig.__dataclass_fields__)
