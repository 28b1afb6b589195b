"""Config keys and tensor names that several architectures have in common; most took them from Llama."""

from __future__ import annotations

from typing import Any

from growlm.huggingface.mapping_rules import (
    MappingRule,
    absent_rule,
    concatenated_rule,
    fused_rule,
    identity_rule,
    stacked_rule,
)

SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_ff": "n_inner",
    "max_seq_len": "n_positions",
    "tie_embeddings": "tie_word_embeddings",
    "norm.eps": "layer_norm_epsilon",
    "feed_forward.kind": "activation_function",
}
"""Keys of GPT-2's class and of those that took its keys."""
GROUPED_KEYS = {"n_kv_heads": "num_key_value_heads"}
GQA_AND_NORM_KEYS = GROUPED_KEYS | {"head_dim": "head_dim", "norm.eps": "rms_norm_eps"}
EXPERT_KEYS = {
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "routing.balance_weight": "router_aux_loss_coef",
}

LLAMA_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
"""Values of absent keys in Llama's class and most classes that took its keys."""

SHARED_NORM = {
    "norm.kind": "layernorm",
    "norm.parallel_residual": True,
    "norm.shared": True,
}
"""Attention and feed-forward block side by side, behind one LayerNorm."""
RMS_SWIGLU = {"norm.kind": "rmsnorm", "norm.bias": False, "feed_forward.kind": "swiglu"}
NO_BIAS = {"attention.bias": "none", "feed_forward.bias": False}
SILU = {"hidden_act": ("silu", "swish")}
ATTENTION_BIAS = {"attention.bias": {False: "none", True: "all"}}
ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
"""growlm's kind of feed-forward block for each activation of a class without gates; the first name is written."""
ROTARY_BUFFERS = (r".*rotary_emb\.inv_freq",)


HEAD_BIAS_RULES = (
    identity_rule("head.bias", "lm_head.bias"),
    identity_rule("tied_head_bias", "lm_head.bias"),
)
"""The bias of a head that is a matrix of its own, or the embedding."""


def _block_rule(growlm_name: str, hf_name: str) -> MappingRule:
    return identity_rule(f"blocks.{{layer}}.{growlm_name}", f"model.layers.{{layer}}.{hf_name}")


ATTENTION_RULES = (
    identity_rule("embedding.weight", "model.embed_tokens.weight"),
    identity_rule("final_norm.{kind}", "model.norm.{kind}"),
    identity_rule("head.weight", "lm_head.weight"),
    _block_rule("attention.query.{kind}", "self_attn.q_proj.{kind}"),
    _block_rule("attention.key.{kind}", "self_attn.k_proj.{kind}"),
    _block_rule("attention.value.{kind}", "self_attn.v_proj.{kind}"),
    _block_rule("attention.output.{kind}", "self_attn.o_proj.{kind}"),
)
"""Attention, and everything outside the blocks."""
GATED_RULES = (
    _block_rule("feed_forward.gate.{kind}", "mlp.gate_proj.{kind}"),
    _block_rule("feed_forward.up.{kind}", "mlp.up_proj.{kind}"),
    _block_rule("feed_forward.down.{kind}", "mlp.down_proj.{kind}"),
)
FUSED_GATE_RULE = concatenated_rule(
    {
        "blocks.{layer}.feed_forward.gate.weight": "hidden",
        "blocks.{layer}.feed_forward.up.weight": "hidden",
    },
    "model.layers.{layer}.mlp.gate_up_proj.weight",
)
"""One tensor for gate and up; it must come before `GATED_RULES`."""
PRE_NORM_RULES = (
    _block_rule("attention_norm.{kind}", "input_layernorm.{kind}"),
    _block_rule("feed_forward_norm.{kind}", "post_attention_layernorm.{kind}"),
)
POST_NORM_RULES = (
    _block_rule("attention_post_norm.weight", "post_attention_layernorm.weight"),
    _block_rule("feed_forward_post_norm.weight", "post_feedforward_layernorm.weight"),
)
BOTH_NORM_RULES = (
    _block_rule("attention_norm.weight", "input_layernorm.weight"),
    _block_rule("feed_forward_norm.weight", "pre_feedforward_layernorm.weight"),
    *POST_NORM_RULES,
)
QK_NORM_RULES = (
    _block_rule("attention.query_norm.weight", "self_attn.q_norm.weight"),
    _block_rule("attention.key_norm.weight", "self_attn.k_norm.weight"),
)
LLAMA_RULES = (*ATTENTION_RULES, *PRE_NORM_RULES, *GATED_RULES)


def router_rules(router: str) -> tuple[MappingRule, ...]:
    """Return the rules of a router with the given name inside a block; no class has a selection bias."""
    return (
        _block_rule("feed_forward.router.weight", f"{router}.weight"),
        absent_rule("blocks.{layer}.feed_forward.selection_bias", "num_experts"),
    )


def per_expert_rules(block: str, gate: str, down: str, up: str) -> tuple[MappingRule, ...]:
    """Return the rules of a layout with separate tensors per expert."""
    expert = f"model.layers.{{layer}}.{block}.experts.{{expert}}"
    return (
        stacked_rule("blocks.{layer}.feed_forward.experts.gate", f"{expert}.{gate}.weight"),
        stacked_rule("blocks.{layer}.feed_forward.experts.down", f"{expert}.{down}.weight"),
        stacked_rule("blocks.{layer}.feed_forward.experts.up", f"{expert}.{up}.weight"),
    )


def fused_expert_rules(gate_and_up: str, down: str) -> tuple[MappingRule, ...]:
    """Return the rules of a layout with one tensor for all gates and ups, and one for all downs."""
    gates_and_ups = (
        "blocks.{layer}.feed_forward.experts.gate",
        "blocks.{layer}.feed_forward.experts.up",
    )
    return (
        fused_rule(gates_and_ups, f"model.layers.{{layer}}.{gate_and_up}", dim=1),
        _block_rule("feed_forward.experts.down", down),
    )


FUSED_EXPERTS = fused_expert_rules("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""The layout in which transformers 5 holds experts in memory."""


def mixture_layouts(*other: MappingRule) -> tuple[tuple[MappingRule, ...], ...]:
    """Return the layouts of a mixture whose experts are named like Llama's feed-forward block.

    Args:
        other: Rules of everything else but routers and experts.
    """
    separate = per_expert_rules("mlp", "gate_proj", "down_proj", "up_proj")
    rules = (*other, *router_rules("mlp.gate"))
    return (*rules, *separate), (*rules, *FUSED_EXPERTS)
