"""The rotation written into one tensor, against its formula and autograd's gradient of it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from growlm.inference.generation import generate
from growlm.inference.sampling import Sampling
from growlm.model.layers.rotary import apply_rotary
from tests.model.tiny_models import build, tiny_config


def by_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def interleaved_by_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2)


FORMULAS = {False: by_formula, True: interleaved_by_formula}
either = pytest.mark.parametrize("interleaved", FORMULAS, ids=["halves", "interleaved"])


def inputs(dtype: torch.dtype, shape=(2, 3, 5, 8)) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, channels = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, heads, channels, generator=generator).to(dtype)
    angles = torch.rand(length, channels // 2, generator=generator) * 6
    return x.requires_grad_(), angles.cos(), angles.sin()


@either
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (4, 8, 64, 32), (1, 1, 1, 2)])
def test_values_and_gradients_to_the_bit(dtype, shape, interleaved):
    x, cos, sin = inputs(dtype, shape)
    results = []
    for function in (FORMULAS[interleaved], partial(apply_rotary, interleaved=interleaved)):
        out = function(x.transpose(1, 2), cos, sin)
        assert out.is_contiguous()
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        (gradient,) = torch.autograd.grad((out * weights).sum(), x)
        results.append((out, gradient))
    (expected, expected_gradient), (found, gradient) = results
    assert torch.equal(found, expected)
    assert torch.equal(gradient, expected_gradient)


@either
@pytest.mark.parametrize("share", [1, 2])
def test_the_gradient_is_the_functions_own(interleaved, share):
    x, cos, sin = inputs(torch.float64)
    cos, sin = (table[:, : table.shape[1] // share].double() for table in (cos, sin))
    assert torch.autograd.gradcheck(
        lambda x: apply_rotary(x.transpose(1, 2), cos, sin, interleaved), x
    )


@either
def test_the_gradient_has_the_layout_of_the_projection(interleaved):
    x, cos, sin = inputs(torch.float32)
    heads = x.transpose(1, 2)
    (gradient,) = torch.autograd.grad(apply_rotary(heads, cos, sin, interleaved).sum(), heads)
    assert gradient.stride() == heads.stride()


@either
def test_the_length_of_every_pair_stays(interleaved):
    x, cos, sin = inputs(torch.float64)
    turned = apply_rotary(x.transpose(1, 2), cos.double(), sin.double(), interleaved)
    sizes, dim = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    pairs = [t.unflatten(-1, sizes).square().sum(dim) for t in (x.transpose(1, 2), turned)]
    torch.testing.assert_close(*pairs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rotated", [8, 4, 2])
def test_interleaved_pairs_are_those_of_the_halves_in_another_order(dtype, num_rotated):
    x, cos, sin = inputs(dtype)
    cos, sin = cos[:, : num_rotated // 2], sin[:, : num_rotated // 2]
    order = [*range(0, num_rotated, 2), *range(1, num_rotated, 2), *range(num_rotated, 8)]
    heads = x.transpose(1, 2)
    found = apply_rotary(heads, cos, sin, interleaved=True)
    assert torch.equal(found[..., order], apply_rotary(heads[..., order], cos, sin))
    assert torch.equal(found[..., num_rotated:], heads[..., num_rotated:])


def test_a_model_with_interleaved_pairs_is_one_with_reordered_channels():
    """In a whole pass, and decoding with a cache."""
    config = tiny_config(rope={"interleaved": True, "fraction": 0.5})
    model = build(config)
    usual = build(replace(config, rope=replace(config.rope, interleaved=False)))
    usual.load_state_dict(model.state_dict())
    rotated = config.rotary_dim
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, config.head_dim)]
    for block in usual.blocks:
        for projection in (block.attention.query, block.attention.key):
            for parameter in projection.parameters():
                heads = parameter.data.unflatten(0, (-1, config.head_dim))
                parameter.data = heads[:, order].flatten(0, 1)
    tokens = torch.arange(2 * config.max_seq_len).view(2, -1) % config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), usual(tokens))
    (found,), (expected,) = (
        generate(each, [[1, 2, 3]], 8, Sampling(temperature=0)) for each in (model, usual)
    )
    assert found.tokens == expected.tokens
