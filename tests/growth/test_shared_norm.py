"""A norm that attention and feed-forward block share, and a bias of the head, through every operator."""

from functools import cache

import pytest
import torch

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from tests.growth.losslessness import assert_lossless
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

NORMS = {
    "layernorm": {},
    "no bias": {"bias": False},
    "rmsnorm, both": {"kind": "rmsnorm", "placement": "both"},
}


@cache
def model_of(norm, tied, **changes):
    parts = {
        "norm": NORMS[norm] | {"parallel_residual": True, "shared": True},
        "embedding": {"head_bias": True},
    }
    return build(tiny_config(tie_embeddings=tied, **parts, **changes), std=0.2)


@pytest.mark.parametrize(
    ("norm", "tied"), [("layernorm", False), ("no bias", True), ("rmsnorm, both", True)]
)
@pytest.mark.parametrize(
    "operators",
    [
        [Upcycle(num_experts=4), MultiplyExperts(2)],
        [Widen(scale_factor=1.5, noise_std=0.02), Deepen(extra_layers=2, init="identity")],
        [Widen(scale_factor=2, new_channels="fresh")],
    ],
    ids=["experts", "wider and deeper", "fresh"],
)
def test_every_operator_keeps_the_function(norm, tied, operators):
    model = model_of(norm, tied)

    grown = grow(model, operators)

    assert grown.config.norm.shared
    assert torch.equal(grown.head_bias, model.head_bias)
    assert_lossless(model, grown)


@pytest.mark.parametrize("changes", [{}, EXPERTS], ids=["dense", "experts"])
def test_both_sub_blocks_read_the_same_normalized_stream(changes):
    """Equal to two norms of equal weights; the head's bias is added to the logits."""
    model = model_of("layernorm", False, **changes)
    two_norms = tiny_config(norm={"parallel_residual": True}, tie_embeddings=False, **changes)
    other = build(two_norms)
    state = model.state_dict()
    bias = state.pop("head.bias")
    for name in [*state]:
        if ".attention_norm." in name:
            state[name.replace("attention", "feed_forward")] = state[name]
    other.load_state_dict(state)
    tokens = random_tokens(model.config)

    expected = logits_of(other, tokens) + bias
    assert max_difference(logits_of(model, tokens), expected) <= 1e-14
