"""Finer experts and re-drawn units."""

import pytest
import torch

from growlm.growth import Upcycle, Widen, build_growth_map, grow
from growlm.runtime.errors import UserError
from growlm.verification import detailed_growth_check, infer_growth_from_configs
from tests.model.tiny_models import build, logits_of, max_difference, random_tokens, tiny_config


@pytest.mark.parametrize("granularity", [2, 3, 4])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_finer_experts_are_lossless(family, granularity):
    model = build(tiny_config(family), std=0.2)
    tokens = random_tokens(model.config)

    grown = grow(model, [Upcycle(num_experts=4, top_k=2, granularity=granularity)])

    config = grown.config
    assert (config.num_experts, config.top_k) == (4 * granularity, 2 * granularity)
    assert config.d_ff == model.config.d_ff // granularity
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-12


def test_tokens_begin_with_whole_copies():
    model = build(tiny_config())
    grown = grow(model, [Upcycle(num_experts=4, top_k=2, granularity=3)])
    routings = []
    grown(random_tokens(model.config), routings)
    for routing in routings:
        groups = routing.selected_experts.sort().values // 3
        assert (groups.unflatten(1, (2, 3)) == groups.unflatten(1, (2, 3))[..., :1]).all()


def test_every_shard_of_the_block_is_there_in_every_group():
    model = build(tiny_config())
    grown = grow(model, [Upcycle(num_experts=4, granularity=3)])
    up = model.blocks[0].feed_forward.up.weight.unflatten(0, (3, -1))
    experts = grown.blocks[0].feed_forward.experts.up.unflatten(0, (4, 3))
    assert all(torch.equal(group, up) for group in experts)


def test_moments_follow_the_shards():
    model = build(tiny_config())
    growth_map = build_growth_map(model.config, [Upcycle(num_experts=4, granularity=3)])
    moment = torch.randn_like(model.blocks[0].feed_forward.up.weight)
    grown = growth_map.tensors["blocks.0.feed_forward.experts.up"].grow_moment(moment, 1)
    assert torch.equal(grown[4], moment.unflatten(0, (3, -1))[1] / 4)


def test_a_granularity_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="granularity=5"):
        grow(build(tiny_config()), [Upcycle(granularity=5)])


def test_finer_experts_behind_ties_broken_at_random_are_refused():
    with pytest.raises(UserError, match="granularity=2"):
        grow(build(tiny_config()), [Upcycle(granularity=2, router_init="zeros")])


@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_the_same_units_are_drawn_anew_in_all_matrices_of_an_expert(family, fraction):
    model = build(tiny_config(family, d_ff=32), std=0.2)
    operator = Upcycle(num_experts=4, drop_fraction=fraction)
    dropped = grow(model, [operator]).blocks[1].feed_forward.experts
    plain = grow(model, [Upcycle(num_experts=4)]).blocks[1].feed_forward.experts

    changed = {
        "up": (dropped.up != plain.up).any(dim=2),
        "down": (dropped.down != plain.down).any(dim=1),
    }
    if dropped.gate is not None:
        changed["gate"] = (dropped.gate != plain.gate).any(dim=2)

    units = changed["up"]  # (experts, hidden)
    assert (units.sum(dim=1) == round(32 * fraction)).all()
    assert all(torch.equal(other, units) for other in changed.values())
    assert len({tuple(row.tolist()) for row in units}) == 4, "each expert keeps other units"
    assert not build_growth_map(model.config, [operator]).lossless


def test_redrawn_values_have_the_mean_and_spread_of_the_old():
    model = build(tiny_config(d_ff=256, d_model=64))
    with torch.no_grad():
        model.blocks[0].feed_forward.up.weight.normal_(0.3, 0.7)
    grown = grow(model, [Upcycle(num_experts=2, drop_fraction=0.5)])
    old = model.blocks[0].feed_forward.up.weight
    new = grown.blocks[0].feed_forward.experts.up[0]
    drawn = new[(new != old).any(dim=1)]
    assert len(drawn) == 128
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.05)
    assert drawn.std().item() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=2, new_channels="copies"), Upcycle(4, granularity=2)],
        [Upcycle(4, granularity=3), Widen(scale_factor=1.5, new_channels="copies")],
        [
            Widen(scale_factor=1.5, new_channels="copies"),
            Upcycle(4, granularity=2),
            Widen(scale_factor=1.5, new_channels="copies"),
        ],
    ],
)
def test_checks_of_finer_experts_together_with_a_widening(operators):
    old = build(tiny_config(), dtype=torch.float32)
    report = detailed_growth_check(
        old_model=old,
        new_model=grow(old, operators),
        probe=random_tokens(old.config),
        device="cpu",
        growth_map=build_growth_map(old.config, operators),
    )
    assert report, [c.summary for c in report.checks.values()]


def test_finer_experts_are_inferred():
    config = tiny_config()
    finer = build_growth_map(config, [Upcycle(4, granularity=2)]).new_config
    assert infer_growth_from_configs(config, finer).new_config.axis_sizes() == finer.axis_sizes()
