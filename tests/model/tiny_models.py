"""Small models for tests, with every parameter away from its initial value."""

import torch

from growlm.model import ModelConfig, TransformerLM
from growlm.model.keyed_rng import keyed_generator, keyed_normal

FAMILIES = {
    "default": {"norm": "layernorm", "feed_forward": "gelu", "bias": True},
    "llama": {"norm": "rmsnorm", "feed_forward": "swiglu", "bias": False},
}
EXPERTS = {"num_experts": 4, "top_k": 2}


def tiny_config(family="default", **changes):
    """Two layers, 16 wide, 4 heads of 4 channels, unless `changes` say otherwise."""
    fields = {
        "vocab_size": 29,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 4,
        "d_ff": 24,
        "max_seq_len": 64,
    }
    if any(isinstance(value, dict) for value in changes.values()):  # parts, instead of the family's
        return ModelConfig(**(fields | changes))
    return ModelConfig(**(fields | FAMILIES[family] | changes))


def build(config, seed=0, std=0.05, dtype=torch.float64, model_class=TransformerLM):
    """A model in eval mode, each parameter moved by normal(0, std), so that none is trivially 0 or 1."""
    model = model_class(config, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += std * keyed_normal(tuple(parameter.shape), "moved", seed, name)
    return model.to(dtype).eval()


def random_tokens(config, batch=3, time=10, seed=0):
    """(batch, time) of random tokens."""
    generator = keyed_generator("tokens", seed)
    return torch.randint(config.vocab_size, (batch, time), generator=generator)


@torch.no_grad()
def logits_of(model, tokens):
    """Logits without a graph."""
    return model(tokens)


def max_difference(first, second):
    """Largest absolute difference."""
    return (first - second).abs().max().item()


def state_copy(model):
    """A copy of all parameters by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(first, second):
    """Two states of the same names hold bitwise the same numbers."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
