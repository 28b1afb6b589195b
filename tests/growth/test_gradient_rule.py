"""The map of a moment is what growth does to the gradient: the evidence for `optimizer_state=carry`."""

from itertools import product

import pytest
import torch.nn.functional as F

from growlm.growth import Deepen, GrowthRng, Upcycle, Widen, apply_growth, build_growth_map, grow
from tests.model.tiny_models import EXPERTS, FAMILIES, build, random_tokens, tiny_config


def gradients(model):
    """Of the cross-entropy of random targets, plus the balancing loss of every router."""
    tokens, targets = (random_tokens(model.config, seed=seed) for seed in (0, 1))
    routings = []
    loss = F.cross_entropy(model(tokens, routings).flatten(0, 1), targets.flatten())
    loss = loss + sum(0.1 * routing.balance_loss() for routing in routings)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_moments_follow(model, operators):
    """Old gradients through the map are the grown model's own, and so are their squares."""
    growth_map = build_growth_map(model.config, operators)
    old = gradients(model)
    new = gradients(apply_growth(model, growth_map, GrowthRng(0)))
    assert new.keys() == growth_map.tensors.keys()
    for name, gradient in new.items():
        tensor_map = growth_map.tensors[name]
        if tensor_map.resets_moments:
            continue
        source = old[tensor_map.source]
        first, second = (tensor_map.grow_moment(source**power, power) for power in (1, 2))
        assert gradient.abs().max() > 1e-6, f"{name} gets a gradient"
        assert (first - gradient).abs().max() <= 1e-12, name
        assert (second - gradient**2).abs().max() <= 1e-12 * (gradient**2).max(), name


@pytest.mark.parametrize("scale_factor", [2, 3])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "tied", "experts"), list(product(FAMILIES, (True, False), ({}, EXPERTS)))
)
def test_gradients_after_widen(family, tied, experts, n_kv_heads, scale_factor):
    config = tiny_config(family, tie_embeddings=tied, n_kv_heads=n_kv_heads, **experts)

    assert_moments_follow(build(config, std=0.2), [Widen(scale_factor=scale_factor, noise_std=0.0)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "widen",
    [
        Widen(d_model=32, noise_std=0.0),
        Widen(n_heads=6, noise_std=0.0),
        Widen(d_ff=40, noise_std=0),
    ],
    ids=["residual", "heads, uneven", "hidden, uneven"],
)
def test_gradients_after_widening_one_axis(family, tied, widen):
    assert_moments_follow(build(tiny_config(family, tie_embeddings=tied), std=0.2), [widen])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_two_widenings(family, tied):
    model = build(tiny_config(family, tie_embeddings=tied), std=0.2)
    widen = Widen(scale_factor=2, noise_std=0.0)

    assert_moments_follow(model, [widen, widen])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_rmsnorm_whose_fillers_nobody_reads(tied, experts):
    """Then fillers get no gradient; their second moment is the mean by choice (see `Fill`), so not compared."""
    model = build(tiny_config("llama", tie_embeddings=tied, **experts), std=0.2)
    growth_map = build_growth_map(
        model.config, [Widen(scale_factor=1.5, noise_std=0.0, filler="zeros")]
    )
    old, new = gradients(model), gradients(apply_growth(model, growth_map, GrowthRng(0)))

    for name, tensor_map in growth_map.tensors.items():
        assert (tensor_map.grow_moment(old[tensor_map.source], 1) - new[name]).abs().max() <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_stay_keep_their_gradients(family):
    model = build(tiny_config(family), std=0.2)
    old, new = (
        gradients(model),
        gradients(grow(model, [Deepen(placement="append", init="identity")])),
    )

    assert all((new[name] - old[name]).abs().max() <= 1e-12 for name in old)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_upcycled_experts_sum_to_the_dense_blocks(family):
    """Gates sum to one and experts are equal. Which expert gets how much depends on the tokens: the map gives
    each the same part (see test_moments). The router has nothing to tell apart yet."""
    model = build(tiny_config(family), std=0.2)
    grown = grow(model, [Upcycle(num_experts=4)])
    tokens, targets = (random_tokens(model.config, seed=seed) for seed in (0, 1))
    for m in (model, grown):
        F.cross_entropy(m(tokens).flatten(0, 1), targets.flatten()).backward()

    for block, dense_block in zip(grown.blocks, model.blocks, strict=True):
        for name in ("up", "down"):
            experts = getattr(block.feed_forward.experts, name).grad
            dense = getattr(dense_block.feed_forward, name).weight.grad
            assert (experts.sum(dim=0) - dense).abs().max() <= 1e-12
        assert block.feed_forward.router.weight.grad.abs().max() <= 1e-12
