"""The rotation written into one tensor, against its formula and autograd's gradient of it."""

import pytest
import torch
from torch import Tensor

from growlm.model.layers.rotary import apply_rotary


def by_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def inputs(dtype: torch.dtype, shape=(2, 3, 5, 8)) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, channels = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, heads, channels, generator=generator).to(dtype)
    angles = torch.rand(length, channels // 2, generator=generator) * 6
    return x.requires_grad_(), angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (4, 8, 64, 32), (1, 1, 1, 2)])
def test_values_and_gradients_to_the_bit(dtype, shape):
    x, cos, sin = inputs(dtype, shape)
    results = []
    for function in (by_formula, apply_rotary):
        out = function(x.transpose(1, 2), cos, sin)
        assert out.is_contiguous()
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        (gradient,) = torch.autograd.grad((out * weights).sum(), x)
        results.append((out, gradient))
    (expected, expected_gradient), (found, gradient) = results
    assert torch.equal(found, expected)
    assert torch.equal(gradient, expected_gradient)


def test_the_gradient_is_the_functions_own():
    x, cos, sin = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: apply_rotary(x.transpose(1, 2), cos.double(), sin.double()), x
    )


def test_the_gradient_has_the_layout_of_the_projection():
    x, cos, sin = inputs(torch.float32)
    heads = x.transpose(1, 2)
    (gradient,) = torch.autograd.grad(apply_rotary(heads, cos, sin).sum(), heads)
    assert gradient.stride() == heads.stride()


def test_the_length_of_every_pair_stays():
    x, cos, sin = inputs(torch.float64)
    turned = apply_rotary(x.transpose(1, 2), cos.double(), sin.double())
    pairs = [t.unflatten(-1, (2, -1)).square().sum(-2) for t in (x.transpose(1, 2), turned)]
    torch.testing.assert_close(*pairs, rtol=1e-6, atol=1e-8)
