"""Attention by plain products against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from growlm.model.layers import causal_attention as module
from growlm.model.layers.causal_attention import (
    MAX_MATMUL_ATTENTION_LENGTH,
    _MatmulAttention,
    causal_attention,
)


def inputs(heads, key_value_heads, dtype=torch.float64, length=7, channels=6):
    torch.manual_seed(0)
    # As the model makes them: heads are cut from the channels of every position.
    shapes = [(2, length, count, channels) for count in (heads, key_value_heads, key_value_heads)]
    return [torch.randn(s).to(dtype).transpose(1, 2).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("heads", "key_value_heads"), [(4, 4), (6, 2), (3, 1)])
def test_values_and_gradients(heads, key_value_heads):
    tensors = inputs(heads, key_value_heads)
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)

    actual = _MatmulAttention.apply(*tensors)

    found = torch.autograd.grad((actual * weights).sum(), tensors)
    assert (actual - expected).abs().max() <= 1e-14
    assert all((f - w).abs().max() <= 1e-13 for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("length", [MAX_MATMUL_ATTENTION_LENGTH, MAX_MATMUL_ATTENTION_LENGTH + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_taken_for_short_sequences_in_half_precision(monkeypatch, length, dtype):
    taken = []
    monkeypatch.setattr(module._MatmulAttention, "apply", lambda *tensors: taken.append(tensors))
    causal_attention(*inputs(2, 2, dtype, length))
    assert bool(taken) == (dtype == torch.bfloat16 and length == MAX_MATMUL_ATTENTION_LENGTH)


def test_in_half_precision_it_is_as_exact_as_its_inputs():
    exact = inputs(4, 2, torch.float32, length=64, channels=32)
    expected = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = causal_attention(*(x.bfloat16() for x in exact))
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() <= 2**-7 * expected.norm()
