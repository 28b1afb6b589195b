"""The model equals independent implementations of the same architectures, weights copied name by name."""

import pytest
import torch
from tiny_models import build, logits_of, max_difference, random_tokens, tiny_config

transformers = pytest.importorskip(
    "transformers", "5.0", reason="transformers 5 is not installed: pip install growlm[test]"
)

SHARED = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
GROUPED = {"num_key_value_heads": 2, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}


def our_model(family, **changes):
    shape = {"vocab_size": 31, "d_model": 32, "head_dim": 8, "d_ff": 48, "n_layers": 3}
    config = tiny_config(family, tie_embeddings=False, **(shape | changes))
    return build(config, std=0.1, dtype=torch.float32)


def assert_equal_logits(ours, theirs, state):
    """Load `state` into `theirs`, every key used, and compare."""
    theirs.load_state_dict(state)
    tokens = random_tokens(ours.config, batch=2, time=40)
    expected = theirs.eval()(tokens).logits
    assert expected.abs().max() > 0.5
    assert max_difference(logits_of(ours, tokens), expected) <= 1e-5


def llama_attention_names(layer):
    source, target = f"blocks.{layer}", f"model.layers.{layer}"
    return {
        f"{target}.input_layernorm.weight": f"{source}.attention_norm.weight",
        f"{target}.post_attention_layernorm.weight": f"{source}.feed_forward_norm.weight",
        f"{target}.self_attn.q_proj.weight": f"{source}.attention.query.weight",
        f"{target}.self_attn.k_proj.weight": f"{source}.attention.key.weight",
        f"{target}.self_attn.v_proj.weight": f"{source}.attention.value.weight",
        f"{target}.self_attn.o_proj.weight": f"{source}.attention.output.weight",
    }


def llama_outer_state(ours):
    return {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }


@torch.no_grad()
def test_llama():
    model = our_model("llama", n_kv_heads=2, rope_theta=5000.0)
    ours = model.state_dict()
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = transformers.LlamaConfig(**SHARED, **GROUPED, rope_parameters=rope)
    state = llama_outer_state(ours)
    for layer in range(3):
        source, target = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
        names = llama_attention_names(layer) | {
            f"{target}.gate_proj.weight": f"{source}.gate.weight",
            f"{target}.up_proj.weight": f"{source}.up.weight",
            f"{target}.down_proj.weight": f"{source}.down.weight",
        }
        state |= {theirs: ours[name] for theirs, name in names.items()}

    assert_equal_logits(model, transformers.LlamaForCausalLM(config), state)


@torch.no_grad()
def test_mixtral():
    model = our_model("llama", n_kv_heads=2, num_experts=6, top_k=2)
    ours = model.state_dict()
    config = transformers.MixtralConfig(
        **SHARED,
        **GROUPED,
        num_local_experts=6,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    state = llama_outer_state(ours)
    for layer in range(3):
        source, target = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
        state |= {theirs: ours[name] for theirs, name in llama_attention_names(layer).items()}
        gate_and_up = [ours[f"{source}.experts.{name}"] for name in ("gate", "up")]
        state |= {
            f"{target}.gate.weight": ours[f"{source}.router.weight"],
            f"{target}.experts.gate_up_proj": torch.cat(gate_and_up, dim=1),
            f"{target}.experts.down_proj": ours[f"{source}.experts.down"],
        }

    assert_equal_logits(model, transformers.MixtralForCausalLM(config), state)


def fused_by_head(ours, attention, kind, heads=4):
    """GPT-NeoX's query_key_value: the rows of each head's query, key and value, head after head."""
    parts = [ours[f"{attention}.{name}.{kind}"] for name in ("query", "key", "value")]
    by_head = [part.unflatten(0, (heads, -1)) for part in parts]
    return torch.cat(by_head, dim=1).flatten(0, 1)


@torch.no_grad()
def test_gpt_neox():
    model = our_model("default")
    ours = model.state_dict()
    config = transformers.GPTNeoXConfig(
        **SHARED,
        use_parallel_residual=False,
        tie_word_embeddings=False,
        layer_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
    )
    state = {
        "gpt_neox.embed_in.weight": ours["embedding.weight"],
        "gpt_neox.final_layer_norm.weight": ours["final_norm.weight"],
        "gpt_neox.final_layer_norm.bias": ours["final_norm.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    for layer in range(3):
        source, target = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        names = {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "feed_forward_norm",
            "attention.dense": "attention.output",
            "mlp.dense_h_to_4h": "feed_forward.up",
            "mlp.dense_4h_to_h": "feed_forward.down",
        }
        for kind in ("weight", "bias"):
            fused = fused_by_head(ours, f"{source}.attention", kind)
            state[f"{target}.attention.query_key_value.{kind}"] = fused
            for theirs, name in names.items():
                state[f"{target}.{theirs}.{kind}"] = ours[f"{source}.{name}.{kind}"]

    assert_equal_logits(model, transformers.GPTNeoXForCausalLM(config), state)
