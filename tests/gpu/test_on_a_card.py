"""What differs on a CUDA device: `pytest -m gpu`. The rest of the tests run on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.model.loss import linear_cross_entropy
from growlm.verification import detailed_growth_check
from tests.machines.imitation import fill_new_memory
from tests.model.tiny_models import EXPERTS, FAMILIES, build, random_tokens, tiny_config
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.tiny_run import tiny_config as run_config
from tests.training.tiny_run import tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPERATORS = [
    Upcycle(4),
    Widen(scale_factor=1.5, noise_std=0.02),
    Deepen(extra_layers=1, init="identity"),
]
ON_CARD = ("trainer=gpu", "model.d_model=64", "model.head_dim=16", "model.d_ff=64")


@pytest.mark.parametrize("vocabulary", [29, 64, 257])
def test_loss_beside_torchs(vocabulary):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (
        torch.randn(n, 16, device="cuda", generator=generator, requires_grad=True)
        for n in (50, vocabulary)
    )
    targets = torch.arange(50, device="cuda") % vocabulary
    expected = F.cross_entropy(hidden @ weight.T, targets)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    actual = linear_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(actual, (hidden, weight))
    assert abs(actual - expected) <= 1e-5
    assert all((f - w).abs().max() <= 1e-5 for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_is_that_of_the_cpu_and_lossless(family):
    model = build(tiny_config(family), dtype=torch.float32)
    expected = grow(model, OPERATORS).state_dict()
    model = model.cuda()
    grown = grow(model, OPERATORS)
    for name, tensor in grown.state_dict().items():
        assert tensor.is_cuda
        assert (tensor.cpu() - expected[name]).abs().max() <= 1e-6, name
    report = detailed_growth_check(
        old_model=model,
        new_model=grown,
        probe=random_tokens(model.config).cuda(),
        device="cuda",
        scale_factor=1.5,
    )
    assert report


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_with_nan_in_new_memory(family, shape):
    model = build(tiny_config(family, **shape), dtype=torch.float32).cuda()
    tokens = random_tokens(model.config).cuda()
    before = fill_new_memory(True)
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            model.loss(tokens, []).backward()
    finally:
        fill_new_memory(before)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_run_on_a_card(precision, tmp_path):
    result = tiny_run(tmp_path / "run", *ON_CARD, f"trainer.precision={precision}")
    assert [phase.name for phase in result.summary.phases] == ["dense", "moe", "wide", "deep"]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    from growlm.training import Interrupted, run_plan

    whole = tiny_run(tmp_path / "whole", *ON_CARD).run_dir
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(run_config(run_dir, *ON_CARD), [SignalAt(10)])
    resumed = run_plan(run_config(run_dir, *ON_CARD, f"resume='{run_dir}'")).run_dir
    assert_same_run(whole, resumed)
