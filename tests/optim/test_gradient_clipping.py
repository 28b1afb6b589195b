"""Clipping is torch's, to the bit, and costs nothing where there is nothing to clip."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from growlm.growth.step_scaling import StepScaling


def layer_with_gradients(scale, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(7, 5)
    layer.frozen = nn.Parameter(torch.zeros(3))  # has no gradient
    for parameter in (layer.weight, layer.bias):
        parameter.grad = scale * torch.randn_like(parameter)
    return layer


def clip(layer, limit):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    return StepScaling().before_step(layer, optimizer, limit)


@given(
    scale=st.floats(1e-8, 1e4),
    limit=st.sampled_from([1e-3, 0.3, 1.0, 100.0, math.inf]),
    seed=st.integers(0, 99),
)
def test_it_is_torch_s(scale, limit, seed):
    ours = layer_with_gradients(scale, seed)
    theirs = copy.deepcopy(ours)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        its.grad = None if mine.grad is None else mine.grad.clone()
    assert clip(ours, limit) == torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize(("limit", "written"), [(0.5, True), (2.0, False), (math.inf, False)])
def test_gradients_within_the_limit_are_not_written(limit, written):
    layer = layer_with_gradients(1.0, 0)
    layer.weight.grad /= torch.nn.utils.get_total_norm([layer.weight.grad, layer.bias.grad])
    layer.bias.grad.zero_()
    before = layer.weight.grad._version
    clip(layer, limit)
    assert (layer.weight.grad._version > before) is written


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_does_not_spread(value):
    layer = layer_with_gradients(1.0, 0)
    layer.bias.grad[2] = value
    weight = layer.weight.grad.clone()
    assert not torch.isfinite(clip(layer, 1.0))
    assert torch.equal(layer.weight.grad, weight)
