"""The checks of a growth run on transformers models: their own logits, and growlm's streams and routers."""

import copy

import pytest
import torch

from growlm.growth import MultiplyExperts, Upcycle, Widen, grow
from growlm.verification import (
    check_router_collapse,
    check_router_scaling,
    check_weight_integrity,
    detailed_growth_check,
    quick_sanity_check,
    verify_functional_equivalence,
)
from tests.huggingface.hf_models import make, tokens_for

OPERATORS = [Upcycle(num_experts=4), Widen(scale_factor=2, noise_std=1e-3)]


@pytest.fixture(scope="module")
def models():
    model = make("llama").train()
    return model, grow(model, OPERATORS)


@pytest.fixture(scope="module")
def probe(models):
    return tokens_for(models[0].config)


def check(models, probe, **settings):
    return detailed_growth_check(
        old_model=models[0], new_model=models[1], probe=probe, device="cpu", **settings
    )


def test_a_growth_passes_all_of_them(models, probe):
    report = verify_functional_equivalence(*models, probe, "cpu")
    assert report
    with torch.no_grad():
        old, new = (model.eval()(probe).logits for model in models)
    assert report.max_difference == (new - old).abs().max()
    for model in models:
        model.train()
    assert check(models, probe, scale_factor=2)
    assert all(model.training for model in models)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.down_proj", "lm_head.weight"])
def test_a_changed_weight_fails_them(models, probe, name):
    damaged = copy.deepcopy(models[1])
    with torch.no_grad():
        damaged.state_dict()[name].view(-1)[7] += 0.5
    assert not verify_functional_equivalence(models[0], damaged, probe, "cpu")
    assert not check((models[0], damaged), probe)


def test_logits_are_those_of_the_model_itself(models, probe):
    """Its own forward is run, not only growlm's with the same weights."""
    damaged = copy.deepcopy(models[1])
    damaged.lm_head.register_forward_hook(lambda _m, _i, out: out + 0.01)
    report = verify_functional_equivalence(models[0], damaged, probe, "cpu")
    assert not report
    assert report.max_difference == pytest.approx(0.01, rel=1e-3)


def test_half_precision(probe):
    model = make("llama").to(torch.bfloat16)
    grown = grow(model, [Widen(scale_factor=2, new_channels="copies", noise_std=0.0)])
    assert verify_functional_equivalence(model, grown, probe, "cpu")
    assert {parameter.dtype for parameter in grown.parameters()} == {torch.bfloat16}


def test_routers(probe):
    model = make("mixtral")
    grown = grow(model, [MultiplyExperts(noise_std=1e-3)])
    assert check_router_scaling(model, grown, probe).status.value == "passed"
    assert check((model, grown), probe)
    assert check_router_collapse(grown, probe).status.value in ("passed", "finding")
    assert quick_sanity_check(grown, probe, "cpu")


def test_weights(models):
    assert check_weight_integrity(*models).status.value == "passed"
