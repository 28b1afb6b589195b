"""More experts: exact where top_k grows alike, and said to be lossy where it does not."""

from dataclasses import replace

import pytest
import torch

from growlm.growth import MultiplyExperts, Upcycle, Widen, build_growth_map, grow
from growlm.runtime.errors import UserError
from growlm.verification import Status, detailed_growth_check, infer_growth_from_configs
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)


def check(old, new, operators):
    return detailed_growth_check(
        old_model=old,
        new_model=new,
        probe=random_tokens(old.config, batch=4, time=24),
        device="cpu",
        growth_map=build_growth_map(old.config, operators),
    )


@pytest.mark.parametrize("noise_std", [0.0, 0.02])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_lossless_with_top_k_multiplied(family, factor, noise_std):
    model = build(tiny_config(family, **EXPERTS, router_bias_step=0.01), std=0.2)
    for block in model.blocks:
        block.feed_forward.selection_bias.uniform_(-0.1, 0.1)
    tokens = random_tokens(model.config)

    grown = grow(model, [MultiplyExperts(factor, noise_std=noise_std)])

    assert (grown.config.num_experts, grown.config.top_k) == (4 * factor, 2 * factor)
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-12


def test_noise_parts_the_copies_and_passes_every_check():
    old, operators = build(tiny_config(**EXPERTS), std=0.2), [MultiplyExperts(2, noise_std=0.02)]
    report = check(old, grow(old, operators), operators)
    assert report.lossless
    assert {c.status for c in report.checks.values()} == {Status.PASSED}


def test_without_noise_the_copies_are_found_equal():
    old, operators = build(tiny_config(**EXPERTS), std=0.2), [MultiplyExperts(2, noise_std=0.0)]
    report = check(old, grow(old, operators), operators)
    assert report.checks["symmetry"].status is Status.FINDING
    assert report


def test_noise_that_does_not_cancel_fails_the_symmetry_check():
    old, operators = build(tiny_config(**EXPERTS), std=0.2), [MultiplyExperts(2, noise_std=0.02)]
    new = grow(old, operators)
    with torch.no_grad():
        new.blocks[0].feed_forward.experts.down[0] += 1e-3
    assert check(old, new, operators).checks["symmetry"].status is Status.FAILED


@pytest.mark.parametrize("top_k", [2, 3])
def test_another_top_k_is_reported_as_not_lossless(top_k):
    old, operators = build(tiny_config(**EXPERTS), std=0.2), [MultiplyExperts(2, top_k=top_k)]
    report = check(old, grow(old, operators), operators)
    assert not report.lossless
    assert report.max_logit_difference > 1e-4
    assert report.checks["router"].status is Status.FINDING
    assert report, "a growth that says so does not fail"


def test_kept_top_k_has_its_ties_broken_on_the_copies_alone():
    old = build(tiny_config(**EXPERTS))
    rows = old.blocks[0].feed_forward.router.weight
    grown = grow(old, [MultiplyExperts(2, top_k=2)]).blocks[0].feed_forward.router.weight
    assert torch.equal(grown[:4], rows)
    moved = (grown[4:] - rows).std().item()
    assert 0.5e-3 < moved < 2e-3
    tied = grow(old, [MultiplyExperts(2)]).blocks[0].feed_forward.router.weight
    assert torch.equal(tied[4:], rows)


@pytest.mark.parametrize(
    "operators",
    [
        [Upcycle(4), MultiplyExperts(2), MultiplyExperts(2)],
        [
            Upcycle(4),
            Widen(scale_factor=1.5, new_channels="copies"),
            MultiplyExperts(2, noise_std=0.02),
        ],
        [
            Upcycle(4),
            MultiplyExperts(3, noise_std=0.02),
            Widen(scale_factor=2, new_channels="copies"),
        ],
    ],
)
def test_together_with_other_growths(operators):
    old = build(tiny_config(), dtype=torch.float32)
    report = check(old, grow(old, operators), operators)
    assert report, [c.summary for c in report.checks.values()]


def test_moments_are_shared_out_over_the_copies():
    config = tiny_config(**EXPERTS)
    tensor_map = build_growth_map(config, [MultiplyExperts(2)]).tensors[
        "blocks.0.feed_forward.experts.up"
    ]
    ones = torch.ones(tensor_map.shape[0] // 2, *tensor_map.shape[1:])
    assert (tensor_map.grow_moment(ones, 1) == 0.5).all()
    assert (tensor_map.grow_moment(ones, 2) == 0.25).all()


def test_a_dense_model_is_refused():
    with pytest.raises(UserError, match="no experts"):
        grow(build(tiny_config()), [MultiplyExperts(2)])


def test_noise_is_refused_where_ties_are_broken_at_random():
    """Equal scores would send a token to one copy and not to the other."""
    zeros = Upcycle(4, router_init="zeros")
    with pytest.raises(UserError, match=r"noise_std=0\.01"):
        build_growth_map(tiny_config(), [zeros, MultiplyExperts(2)])
    assert build_growth_map(tiny_config(), [zeros, MultiplyExperts(2, noise_std=0.0)]).lossless


@pytest.mark.parametrize("tie_breaking", [True, False])
def test_tied_routers_of_different_experts_are_found_out(tie_breaking):
    """The copies of tied experts cannot be chosen as the experts were; every position is a tie."""
    old = build(tiny_config(**EXPERTS, router_tie_breaking=tie_breaking), std=0.3)
    with torch.no_grad():
        for block in old.blocks:
            block.feed_forward.router.weight.zero_()
    operators = [MultiplyExperts(2, noise_std=0.0)]
    report = check(old, grow(old, operators), operators)
    assert report.checks["router"].status is Status.FAILED
    assert not report


def test_inferred_for_a_mixture_that_breaks_ties():
    old = build(tiny_config(), dtype=torch.float32)
    mixture = grow(old, [Upcycle(4, router_init="zeros")])
    assert infer_growth_from_configs(
        mixture.config, replace(mixture.config, num_experts=8, top_k=4)
    ).lossless
