"""An initial weight depends on the seed and its own name, and on nothing else."""

import math

import pytest
import torch

from growlm.model import TransformerLM
from tests.model.tiny_models import EXPERTS, assert_same_state, tiny_config


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_same_seed_same_weights_whatever_was_drawn_before(experts):
    config = tiny_config(**experts)
    first = TransformerLM(config, seed=3)
    torch.rand(7)

    second = TransformerLM(config, seed=3)

    assert_same_state(first.state_dict(), second.state_dict())


def test_another_seed_changes_every_matrix():
    first, second = (TransformerLM(tiny_config(), seed=seed).state_dict() for seed in (0, 1))

    same = {name for name in first if torch.equal(first[name], second[name])}

    assert same == {name for name in first if first[name].ndim == 1}


def test_other_parameters_of_the_model_do_not_matter():
    small = TransformerLM(tiny_config(), seed=0).state_dict()
    other = TransformerLM(tiny_config(n_layers=3, d_ff=40, **EXPERTS), seed=0).state_dict()

    for name in ("embedding.weight", "blocks.1.attention.query.weight"):
        assert torch.equal(small[name], other[name])


def test_no_two_matrices_are_equal():
    state = TransformerLM(tiny_config()).state_dict()

    query, key = (state[f"blocks.0.attention.{name}.weight"] for name in ("query", "key"))

    assert not torch.equal(query, key)
    assert not torch.equal(query, state["blocks.1.attention.query.weight"])


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()

    TransformerLM(tiny_config(**EXPERTS))

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_layers", [2, 8])
def test_standard_deviations_are_those_of_gpt2(n_layers):
    state = TransformerLM(tiny_config(n_layers=n_layers, d_model=64, d_ff=256)).state_dict()
    output_std = 0.02 / math.sqrt(2 * n_layers)

    assert state["blocks.0.feed_forward.up.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    down = state["blocks.1.feed_forward.down.weight"]
    assert down.std().item() == pytest.approx(output_std, rel=0.05)
    assert state["blocks.0.attention_norm.weight"].eq(1).all()
    assert state["blocks.0.attention_norm.bias"].eq(0).all()
    assert state["blocks.0.attention.query.bias"].eq(0).all()
