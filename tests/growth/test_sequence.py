"""A sequence of operators is one map, repeatable to the bit, that touches nothing but the new model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from growlm.growth import (
    Deepen,
    GrowthMap,
    GrowthRng,
    Upcycle,
    Widen,
    apply_growth,
    build_growth_map,
    grow,
    hyperclone_weight,
)
from growlm.growth.growth_map import derive_growth_map
from growlm.growth.model_protocol import axes_table_from_config
from growlm.model import TransformerLM
from tests.model.tiny_models import assert_same_state, build, state_copy, tiny_config

SEQUENCES = {
    "upcycle, widen": [Upcycle(num_experts=4), Widen(scale_factor=1.5)],
    "widen, deepen": [Widen(scale_factor=2), Deepen(extra_layers=3, placement="interleave")],
    "deepen, upcycle, widen": [
        Deepen(placement="stack"),
        Upcycle(num_experts=3),
        Widen(scale_factor=1.5),
    ],
    "widen twice": [Widen(scale_factor=1.5), Widen(scale_factor=1.5)],
}
WITHOUT_DRAWS = [
    Upcycle(num_experts=3, router_init="zeros"),
    Widen(scale_factor=1.5, noise_std=0.0, filler="zeros"),
    Deepen(),
]
SEQUENCE = pytest.mark.parametrize("operators", SEQUENCES.values(), ids=SEQUENCES)


def one_by_one(model, operators, draws):
    """Derive and apply each operator by itself, at its place in the sequence."""
    for position, operator in enumerate(operators):
        change = operator.change(model.config)
        old, new = (
            axes_table_from_config(config, TransformerLM)
            for config in (model.config, change.config)
        )
        model = apply_growth(
            model, derive_growth_map(model.config, old, new, change, position), draws
        )
    return model


@pytest.mark.parametrize("family", ["default", "llama"])
@SEQUENCE
def test_sequence_equals_one_by_one(family, operators):
    model = build(tiny_config(family))

    together = grow(model, operators, seed=5, boundary_index=2)

    apart = one_by_one(model, operators, GrowthRng(5, 2))
    assert together.config == apart.config
    assert_same_state(together.state_dict(), apart.state_dict())


@SEQUENCE
def test_joined_map_maps_axes_and_blocks_like_its_steps(operators):
    config = tiny_config()
    joined = build_growth_map(config, operators)
    step_by_step = GrowthMap.identity(config, axes_table_from_config(config, TransformerLM))
    for operator in operators:
        step_by_step = step_by_step.then(build_growth_map(step_by_step.new_config, [operator]))

    assert joined.blocks == step_by_step.blocks
    assert joined.description == step_by_step.description
    for axis, channels in joined.axes.items():
        assert torch.equal(channels.source, step_by_step.axes[axis].source)
        assert torch.equal(channels.shares, step_by_step.axes[axis].shares)


@SEQUENCE
def test_same_seed_same_weights(operators):
    model = build(tiny_config())

    first, second = (grow(model, operators, seed=1).state_dict() for _ in range(2))

    assert_same_state(first, second)


def test_without_draws_the_seed_does_not_matter():
    model = build(tiny_config())

    first, second = (grow(model, WITHOUT_DRAWS, seed).state_dict() for seed in (0, 1))

    assert_same_state(first, second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"boundary_index": 1}])
@SEQUENCE
def test_seed_and_boundary_change_the_draws(operators, change):
    model = build(tiny_config())

    first, second = grow(model, operators).state_dict(), grow(model, operators, **change)

    second = second.state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["embedding.weight"], second["embedding.weight"])


def test_two_widenings_in_a_row_draw_differently():
    model = build(tiny_config())
    widen = Widen(d_ff=32)
    first_place = grow(model, [widen])
    second_place = grow(model, [Deepen(), widen])

    name = "blocks.0.feed_forward.down.weight"

    assert not torch.equal(first_place.state_dict()[name], second_place.state_dict()[name])


def test_no_two_tensors_share_their_draws():
    grown = grow(build(tiny_config()), [Upcycle(num_experts=4)]).state_dict()

    first, second = (grown[f"blocks.{block}.feed_forward.router.weight"] for block in (0, 1))

    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(3, 2), (7, 5), (16, 8)])
def test_each_expert_of_a_stack_has_a_draw_of_its_own(shape):
    """So a shard that holds some of the experts gets the numbers of the whole stack's."""
    two, five = (GrowthRng(0).normal((count, *shape), "noise", (0, "up")) for count in (2, 5))

    assert torch.equal(two, five[:2])
    assert len({tuple(member.flatten().tolist()) for member in five}) == 5


GROWTHS = {
    "model": lambda: grow(build(tiny_config()), [Widen(scale_factor=2)]),
    "matrix": lambda: hyperclone_weight(torch.randn(6, 4), noise_std=0.02),
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_a_growth_leaves_no_threads(growth):
    """They would slow the training down, see `Draws`."""
    before = threading.active_count()
    GROWTHS[growth]()
    assert threading.active_count() == before


@pytest.mark.parametrize("growth", GROWTHS)
def test_threads_that_begin_after_a_growth_use_all_cores(growth):
    """Those that drew had one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        GROWTHS[growth]()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@SEQUENCE
def test_global_random_state_and_old_model_are_untouched(operators):
    model = build(tiny_config())
    before, random_state = state_copy(model), torch.get_rng_state()
    config = repr(model.config)

    grown = grow(model, operators)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.fill_(7.0)

    assert_same_state(model.state_dict(), before)
    assert repr(model.config) == config
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_precision_are_kept(training):
    model = build(tiny_config(), dtype=torch.bfloat16).train(training)

    grown = grow(model, SEQUENCES["upcycle, widen"])

    assert grown.training is training
    assert {tensor.dtype for tensor in grown.state_dict().values()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in grown.parameters())


def test_no_operators_make_a_copy():
    model = build(tiny_config())

    copy = grow(model, [])

    assert_same_state(copy.state_dict(), model.state_dict())
    assert copy.embedding.weight.data_ptr() != model.embedding.weight.data_ptr()
