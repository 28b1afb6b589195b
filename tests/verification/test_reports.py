"""Equivalence and sanity of single models."""

import math

import torch

from growlm.growth import Upcycle, grow
from growlm.verification import quick_sanity_check, verify_functional_equivalence
from tests.model.tiny_models import EXPERTS, build, random_tokens, tiny_config


def test_equivalence_has_the_largest_difference_of_each_sequence():
    old = build(tiny_config(), dtype=torch.float64)
    new = grow(old, [Upcycle(num_experts=4)])
    probe = random_tokens(old.config)
    assert verify_functional_equivalence(old, new, probe, "cpu")
    with torch.no_grad():
        new.final_norm.bias += 0.01
        expected = (old(probe) - new(probe)).abs().amax(dim=(1, 2))
    report = verify_functional_equivalence(old, new, probe, "cpu")
    assert not report
    assert torch.allclose(torch.tensor(report.by_sequence, dtype=torch.float64), expected)
    assert math.isclose(report.max_difference, float(expected.max()))


def test_a_healthy_model_is_sane_and_left_as_it_was():
    model = build(tiny_config(**EXPERTS), dtype=torch.float32).train()
    report = quick_sanity_check(
        model, random_tokens(model.config, batch=4, time=24), "cpu", label="MoE"
    )
    assert report, report.problems
    assert report.label == "MoE"
    assert math.isclose(report.uniform_loss, math.log(29))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_look_into_the_future_is_seen(monkeypatch):
    model = build(tiny_config(), dtype=torch.float32)
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda *args, is_causal, **kwargs: attend(*args, is_causal=False, **kwargs),
    )
    report = quick_sanity_check(model, random_tokens(model.config), "cpu")
    assert any("later token" in problem for problem in report.problems)


def test_nan_and_unreached_parameters_are_seen():
    model = build(tiny_config(), dtype=torch.float32)
    with torch.no_grad():
        model.blocks[0].attention.query.weight[0, 0] = float("nan")
    report = quick_sanity_check(model, random_tokens(model.config), "cpu")
    assert any("not finite" in problem for problem in report.problems)
