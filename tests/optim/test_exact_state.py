"""`optimizer_state: exact`: the grown model trains as the old one would have."""

import pytest
import torch

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, build_growth_map
from growlm.growth.optimizer_state import explain_inexactness
from growlm.growth.step_scaling import ExactScaling
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)
from tests.training.grown_training import LR, OPTIMIZERS, Training
from tests.training.stopping import slow

PLAIN = {"noise_std": 0.0}
CLIPS = {"clipped": 0.3, "not clipped": float("inf")}
SHAPES = {
    "dense": {},
    "experts": EXPERTS,
    "grouped": {"n_kv_heads": 2},
    "one kv head": {"n_kv_heads": 1},
}


def drift(config, boundaries, settings=OPTIMIZERS["adamw"], clip=0.3, mode="exact", steps=30):
    """How far the grown model's logits are from the ungrown one's after 30 steps of each.

    Args:
        boundaries: By step, the operators.
    """
    ungrown = Training(build(config, std=0.2), settings, clip).steps(steps)
    grown = Training(build(config, std=0.2), settings, clip)
    done = 0
    for step, operators in boundaries.items():
        grown.steps(step - done).grow(operators, mode)
        done = step
    grown.steps(steps - done)
    tokens = random_tokens(config)
    moved = max_difference(
        logits_of(build(config, std=0.2), tokens), logits_of(ungrown.model, tokens)
    )
    assert moved > 0.1, "training did something"
    return max_difference(logits_of(ungrown.model, tokens), logits_of(grown.model, tokens))


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("tied", [True, *slow(False)])
@pytest.mark.parametrize("factor", [2, *slow(3)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("family", ["default", "llama"])
def test_30_steps_agree(family, shape, factor, tied, clip):
    config = tiny_config(family, tie_embeddings=tied, **shape)
    assert drift(config, {10: [Widen(scale_factor=factor, **PLAIN)]}, clip=clip) <= 1e-8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_several_boundaries_agree(family, shape, tied):
    config = tiny_config(family, tie_embeddings=tied, **shape)
    twice = {
        5: [Widen(scale_factor=2, **PLAIN)],
        12: [Widen(d_model=48, n_heads=12, d_ff=64, **PLAIN, filler="zeros")],
        20: [Widen(scale_factor=2, **PLAIN)],
    }
    if family == "default":
        twice[12] = [
            Widen(d_model=64, n_heads=12, d_ff=64, **PLAIN)
        ]  # whole copies under LayerNorm
    assert drift(config, twice) <= 1e-8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
def test_rmsnorm_at_one_and_a_half_agrees_with_zero_fillers(shape, tied):
    config = tiny_config("llama", tie_embeddings=tied, **shape)
    widen = Widen(scale_factor=1.5, filler="zeros", **PLAIN)
    assert drift(config, {10: [widen]}) <= 1e-8


@pytest.mark.parametrize("shape", [{}, {"n_kv_heads": 2}], ids=["plain", "grouped"])
@pytest.mark.parametrize("width", [{"n_heads": 8}, {"d_ff": 48}, {"n_heads": 6}])
def test_uneven_splits_inside_a_block_agree(width, shape):
    widen = Widen(split="1:2", **width, **PLAIN)
    config = tiny_config("llama", **shape)
    assert drift(config, {10: [widen]}) <= 1e-8
    assert not explain_inexactness(build_growth_map(config, [widen]))


@pytest.mark.parametrize("family", ["default", "llama"])
def test_multiplied_experts_agree(family):
    config = tiny_config(family, **EXPERTS)
    assert drift(config, {10: [MultiplyExperts(2, noise_std=0.0)]}) <= 1e-8


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("width", [{"scale_factor": 2}, {"d_ff": 40}])
def test_sgd_agrees(shape, width):
    config = tiny_config("llama", **shape)
    widen = Widen(filler="zeros", **width, **PLAIN)
    assert drift(config, {10: [widen]}, OPTIMIZERS["sgd"], clip=1.0) <= 1e-8


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_with_the_rate_left_unscaled_it_does_not(family, factor, monkeypatch):
    """The same comparison, so that it is known to be able to fail."""
    monkeypatch.setattr(ExactScaling, "lr_factor", lambda self, name: 1.0)
    config = tiny_config(family)
    assert drift(config, {10: [Widen(scale_factor=factor, **PLAIN)]}) > 1e-3


@pytest.mark.parametrize("left_out", ["gradients", "updates", "clipping"])
def test_with_another_part_left_out_it_does_not(left_out, monkeypatch):
    widen, clip = Widen(d_ff=40, **PLAIN), 0.3
    if left_out == "updates":
        monkeypatch.setattr(
            ExactScaling, "after_step", lambda self: self._updates._old_values.clear()
        )
    if left_out == "gradients":
        # Adam does not care for the scale of a gradient but through eps, SGD does.
        monkeypatch.setattr("growlm.growth.step_scaling.common_value", lambda vectors: 1.0)
    if left_out == "clipping":
        from growlm.growth.step_scaling import StepScaling

        monkeypatch.setattr(ExactScaling, "before_step", StepScaling.before_step)
    assert drift(tiny_config("llama"), {10: [widen]}, OPTIMIZERS["sgd"], clip) > 1e-6


def test_carrying_does_not():
    assert drift(tiny_config(), {10: [Widen(scale_factor=2, **PLAIN)]}, mode="carry") > 1e-3


def test_norms_are_those_of_the_ungrown_model():
    config = tiny_config("llama", **EXPERTS)
    ungrown = Training(build(config, std=0.2)).steps(8)
    grown = (
        Training(build(config, std=0.2)).steps(4).grow([Widen(scale_factor=2, **PLAIN)], "exact")
    )
    assert grown.steps(4).norms == pytest.approx(ungrown.norms, abs=1e-9)


def test_rates_and_decays_of_the_groups():
    config = tiny_config()
    grown = Training(build(config)).grow([Widen(scale_factor=2, **PLAIN)], "exact")
    groups = {(g["lr"], g["weight_decay"]) for g in grown.optimizer.param_groups}
    assert groups == {(LR / 2, 0.2), (LR, 0.0), (LR / 2, 0.0)}  # matrices; biases; the final norm


def test_plain_moments_come_back():
    """What a phase hands on does not depend on the mode it was trained in."""
    config = tiny_config("llama")
    grown = Training(build(config, std=0.2)).steps(3).grow([Widen(d_ff=40, **PLAIN)], "exact")
    states = {p: dict(s) for p, s in grown.optimizer.state.items()}
    before = {p: s["exp_avg"].clone() for p, s in states.items()}
    named = {n: grown.optimizer.state[p] for n, p in grown.model.named_parameters()}
    grown.scaling.unscale_state(named)
    grown.scaling.scale_state(named)
    assert all(torch.allclose(s["exp_avg"], before[p], rtol=1e-12) for p, s in states.items())


@pytest.mark.parametrize(
    ("family", "operators", "reason"),
    [
        ("default", [Widen(scale_factor=2, new_channels="copies")], "noise"),
        ("default", [Widen(scale_factor=1.5, noise_std=0.0)], "LayerNorm"),
        ("llama", [Widen(scale_factor=1.5, noise_std=0.0)], "random columns"),
        ("llama", [Widen(scale_factor=2, noise_std=0.0, split="1:2")], "unevenly"),
        ("llama", [Deepen(init="copy")], "not lossless"),
    ],
)
def test_says_where_it_is_not_exact(family, operators, reason):
    assert reason in "; ".join(
        explain_inexactness(build_growth_map(tiny_config(family), operators))
    )


def test_says_that_a_z_loss_sees_more_experts():
    config = tiny_config(**EXPERTS, router_z_weight=0.01)
    growth_map = build_growth_map(config, [MultiplyExperts(2, noise_std=0.0)])
    assert "z-loss" in "; ".join(explain_inexactness(growth_map))


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=2, noise_std=0.0)],
        [Widen(scale_factor=1.5, noise_std=0.0, filler="zeros")],
        [Upcycle()],
        [Deepen(init="identity")],
    ],
)
def test_does_not_warn_without_a_reason(operators):
    assert not explain_inexactness(build_growth_map(tiny_config("llama"), operators))
