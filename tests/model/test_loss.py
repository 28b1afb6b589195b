"""The chunked loss against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from growlm.model import loss as loss_module
from growlm.model.loss import cap_logits, linear_cross_entropy, token_losses
from tests.model.tiny_models import build, random_tokens, tiny_config


@pytest.fixture(params=[1, 3, 1000], ids="{} rows a chunk".format)
def chunk(request, monkeypatch):
    monkeypatch.setattr(
        loss_module, "CHUNK_BYTES", 8 * loss_module.LOGITS_ROW_ALIGNMENT * request.param
    )
    monkeypatch.setattr(loss_module, "BLOCK_BYTES", 2 * 8 * 29)


def inputs(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(10, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(29, 16, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(29, (10,))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_value_and_gradients(dtype, tolerance, softcap, has_bias):
    hidden, weight, targets = inputs(dtype)
    bias = torch.randn(29, dtype=dtype, requires_grad=True) if has_bias else None
    factors = (hidden, weight) if bias is None else (hidden, weight, bias)
    logits = cap_logits(F.linear(hidden, weight, bias), softcap)
    expected = F.cross_entropy(logits, targets)
    wanted = torch.autograd.grad(3 * expected, factors)

    actual = linear_cross_entropy(hidden, weight, targets, softcap, bias)

    found = torch.autograd.grad(3 * actual, factors)
    assert abs(actual - expected) <= tolerance
    assert all((f - w).abs().max() <= 10 * tolerance for f, w in zip(found, wanted, strict=True))
    assert abs(token_losses(*inputs(dtype), softcap, bias).mean() - expected) <= tolerance


@pytest.mark.usefixtures("chunk")
def test_under_autocast_products_are_bf16_and_the_rest_is_fp32():
    hidden, weight, targets = inputs(torch.float32)
    bias = torch.linspace(-1, 1, 29, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = F.linear(hidden, weight, bias)
        actual = linear_cross_entropy(hidden, weight, targets, bias=bias)
    expected = F.cross_entropy(logits.float(), targets)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    actual.backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


def test_without_gradients_none_are_made():
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets)
    assert not value.requires_grad
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad is None


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_models_loss_is_that_of_its_logits(tied, head_bias):
    model = build(tiny_config(tie_embeddings=tied, embedding={"head_bias": head_bias}))
    batch = random_tokens(model.config)
    expected = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    actual = model.loss(batch)
    found = torch.autograd.grad(actual, list(model.parameters()))
    assert abs(actual - expected) <= 1e-14
    assert all((f - w).abs().max() <= 1e-12 for f, w in zip(found, wanted, strict=True))
