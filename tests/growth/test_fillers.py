"""Filler channels of a width that is no multiple: nothing behind the norms, and alive."""

import math

import pytest
import torch

from growlm.growth import Widen, grow
from growlm.growth.growth_rng import normal_quantiles
from tests.model.tiny_models import build, max_difference, random_tokens, tiny_config

RATIO = 16 / 24  # the share of channels that are copies: one full copy of 16 in 24
BLOCK = "blocks.1."
READERS = ("attention.query.weight", "attention.key.weight", "feed_forward.up.weight")


def widened(family, filler="random", **changes):
    """A model, and its state ×1.5 without noise."""
    model = build(tiny_config(family, **changes), std=0.2)
    operator = Widen(scale_factor=1.5, noise_std=0.0, filler=filler)
    return model.state_dict(), grow(model, [operator])


def test_layernorm_fillers_hold_the_mean_of_the_channels():
    old, grown = widened("default")
    new = grown.state_dict()

    mean = old["embedding.weight"].mean(dim=1, keepdim=True)
    assert max_difference(new["embedding.weight"][:, 16:], mean.expand(-1, 8)) < 1e-15
    bias = f"{BLOCK}attention.output.bias"
    assert max_difference(new[bias][16:], old[bias].mean()) < 1e-15
    weight = new[f"{BLOCK}feed_forward.down.weight"]
    assert max_difference(weight[16:], weight[:16].mean(dim=0).expand(8, -1)) < 1e-15


def test_rmsnorm_fillers_are_zero():
    new = widened("llama")[1].state_dict()

    for name in ("attention.output.weight", "feed_forward.down.weight"):
        assert not new[BLOCK + name][16:].any()
        assert new[BLOCK + name][:16].all()
    assert not new["embedding.weight"][:, 16:].any()


@pytest.mark.parametrize("family", ["default", "llama"])
def test_gains_are_scaled_and_fillers_get_their_mean(family):
    """A filler gain of zero behind a zero channel would never leave zero."""
    old, grown = widened(family)
    name = f"{BLOCK}attention_norm.weight"
    gain = grown.state_dict()[name]

    assert max_difference(gain[:16], old[name] * math.sqrt(RATIO)) < 1e-15
    assert max_difference(gain[16:], old[name].mean() * math.sqrt(RATIO)) < 1e-15
    assert grown.config.norm.eps == pytest.approx(1e-5 * RATIO, rel=1e-12)


def test_shifts_of_fillers_are_zero():
    old, grown = widened("default")
    name = f"{BLOCK}attention_norm.bias"
    shift = grown.state_dict()[name]

    assert torch.equal(shift[:16], old[name])
    assert not shift[16:].any()


@pytest.mark.parametrize("copies", [2, 3])
def test_final_norm_before_a_tied_head_is_divided_by_the_copies(copies):
    model = build(tiny_config())
    new = grow(model, [Widen(d_model=16 * copies, new_channels="copies")]).state_dict()

    for name in ("final_norm.weight", "final_norm.bias"):
        expected = model.state_dict()[name].repeat(copies) / copies
        assert max_difference(new[name], expected) < 1e-15
    assert torch.equal(new["embedding.weight"], model.embedding.weight.repeat(1, copies))
    gain = model.state_dict()["blocks.0.attention_norm.weight"]
    assert torch.equal(new["blocks.0.attention_norm.weight"], gain.repeat(copies))


@pytest.mark.parametrize("family", ["default", "llama"])
def test_normalised_fillers_are_zero_in_every_layer(family):
    grown = widened(family)[1]
    seen = []
    for block in grown.blocks:
        for norm in (block.attention_norm, block.feed_forward_norm):
            norm.register_forward_hook(lambda _, __, out: seen.append(out.detach()))

    grown(random_tokens(grown.config))

    assert len(seen) == 4
    for normalised in seen:
        assert normalised[..., 16:].abs().max() < 1e-13
        assert normalised[..., :16].abs().max() > 1


def test_random_readers_of_fillers_have_the_spread_of_the_matrix():
    new = widened("default", d_model=16, d_ff=400)[1].state_dict()
    weight = new[f"{BLOCK}feed_forward.up.weight"][:400]
    fillers, others = weight[:, 16:], weight[:, :16]

    assert fillers.std().item() == pytest.approx(others.std().item(), rel=0.05)
    # As many different values as independent draws from a table have, five deviations around it.
    draws, table = fillers.numel(), len(normal_quantiles())
    different = table * (1 - math.exp(-draws / table))
    assert len(fillers.unique()) == pytest.approx(different, abs=5 * (draws - different) ** 0.5)


@pytest.mark.parametrize("name", READERS)
def test_zero_readers_of_fillers(name):
    new = widened("default", filler="zeros")[1].state_dict()

    assert not new[BLOCK + name][:, 16:].any()
    assert new[BLOCK + name][:, :16].all()


@pytest.mark.parametrize("family", ["default", "llama"])
def test_fillers_come_alive_in_the_first_step(family):
    """What writes them gets a gradient through the random columns that read them."""
    grown = widened(family)[1]

    grown(random_tokens(grown.config)).square().sum().backward()

    block = grown.blocks[0]
    assert (block.attention.output.weight.grad[16:].abs() > 0).all()
    assert (block.feed_forward.down.weight.grad[16:].abs() > 0).all()
