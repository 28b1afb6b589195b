"""What upcycling makes: equal experts behind a router that tells them apart, or one at zero for proofs."""

import pytest
import torch

from growlm.growth import Upcycle, grow
from tests.model.tiny_models import build, random_tokens, tiny_config


def loads_of(model):
    """(layers, experts), the share of assignments that each expert got."""
    routings = []
    with torch.no_grad():
        model(random_tokens(model.config, batch=8, time=32), routings)
    return torch.stack([routing.expert_load() for routing in routings])


@pytest.mark.parametrize("family", ["default", "llama"])
def test_every_expert_is_the_dense_block(family):
    model = build(tiny_config(family))

    experts = grow(model, [Upcycle(num_experts=5)]).blocks[1].feed_forward.experts.state_dict()

    dense = model.blocks[1].feed_forward.state_dict()
    assert len(experts) == len(dense)
    for name, tensor in dense.items():
        stack = experts[name.replace(".weight", "").replace(".bias", "_bias")]
        assert torch.equal(stack, tensor.expand(5, *tensor.shape))


@pytest.mark.parametrize("router_std", [0.02, 0.5])
def test_normal_router_has_the_spread_asked_for(router_std):
    model = build(tiny_config(d_model=64))

    grown = grow(model, [Upcycle(num_experts=32, router_std=router_std)])

    weight = grown.blocks[0].feed_forward.router.weight
    assert weight.std().item() == pytest.approx(router_std, rel=0.05)
    assert not grown.config.routing.tie_breaking


def test_zero_router_chooses_all_experts_alike_in_the_selection_only():
    grown = grow(build(tiny_config()), [Upcycle(num_experts=8, router_init="zeros")])

    assert not grown.blocks[0].feed_forward.router.weight.any()
    assert loads_of(grown).min() > 0.5 / 8


def test_zero_router_with_unbroken_ties_leaves_most_experts_unused():
    operator = Upcycle(num_experts=8, router_init="zeros", break_ties=False)

    assert (loads_of(grow(build(tiny_config()), [operator])) == 0).sum() == 2 * 6
