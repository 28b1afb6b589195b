"""Nothing is read before it is written, nor lies unwritten beside an operand of a matrix product."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.inference.generation import generate
from growlm.model import loss as loss_module
from growlm.model.loss import linear_cross_entropy, token_losses
from growlm.verification import detailed_growth_check
from tests.machines.imitation import fill_new_memory
from tests.machines.neighbors import WrittenNeighbors
from tests.model.tiny_models import EXPERTS, FAMILIES, build, random_tokens, tiny_config

PRECISIONS = {"bf16": torch.bfloat16, "fp32": None}
SHAPES = {
    "dense": {},
    "experts": EXPERTS,
    "grouped heads": {"n_kv_heads": 2},
    "odd sizes": {"head_dim": 6, "d_ff": 27},
}


@contextmanager
def watched():
    before = fill_new_memory(True)
    try:
        with WrittenNeighbors() as seen:
            yield
        assert seen.products
    finally:
        fill_new_memory(before)


def autocast(dtype):
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


def test_the_watch_sees_what_lies_beside_an_operand():
    before = fill_new_memory(True)
    try:
        wide = torch.empty(4, 8)
        wide[:, :5] = 1.0
        with WrittenNeighbors(), pytest.raises(AssertionError, match="though not itself"):
            wide[:, :5] @ torch.ones(5, 2)
    finally:
        fill_new_memory(before)


@pytest.mark.parametrize("vocabulary", [29, 64, 257])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [3, 1000])
def test_loss(rows, precision, vocabulary, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 2 * 320 * rows)
    hidden = torch.ones(10, 16, requires_grad=True)
    weight = torch.ones(vocabulary, 16, requires_grad=True)
    targets = torch.arange(10)
    with watched(), autocast(PRECISIONS[precision]):
        linear_cross_entropy(hidden, weight, targets).backward()
        token_losses(hidden, weight, targets)
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("length", [1, 12])
def test_model(family, shape, precision, length):
    model = build(tiny_config(family, **SHAPES[shape]), dtype=torch.float32)
    tokens = random_tokens(model.config, batch=3, time=length + 1)
    with watched(), autocast(PRECISIONS[precision]):
        model.loss(tokens, []).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_generation(family, shape, dtype):
    model = build(tiny_config(family, **SHAPES[shape]), dtype=dtype)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with watched():
        texts = list(generate(model, prompts, 9))
    assert texts


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_and_its_checks(family):
    model = build(tiny_config(family), dtype=torch.float32)
    probe = random_tokens(model.config)
    operators = [
        Upcycle(4),
        Widen(scale_factor=1.5, noise_std=0.02),
        Deepen(extra_layers=1, init="identity"),
    ]
    with watched():
        grown = grow(model, operators)
        report = detailed_growth_check(
            old_model=model,
            new_model=grown,
            probe=probe,
            device="cpu",
            scale_factor=1.5,
            tolerance=1e-4,
        )
    assert report
    assert all(p.isfinite().all() for p in grown.parameters())
