"""Blocks computed again in the backward pass, or compiled: the same model."""

import pytest
import torch

from tests.model.tiny_models import EXPERTS, build, random_tokens, tiny_config

INTERLEAVED = {"rope": {"interleaved": True, "fraction": 0.5}}
each_shape = pytest.mark.parametrize(
    "shape", [{}, EXPERTS, INTERLEAVED], ids=["dense", "experts", "interleaved"]
)


def losses_and_gradients(model, batch):
    routings = []
    loss = model.loss(batch, routings)
    balance = sum(routing.balance_loss() for routing in routings)
    gradients = torch.autograd.grad(loss + balance, list(model.parameters()))
    return loss, gradients, len(routings)


@each_shape
@pytest.mark.parametrize("family", ["default", "llama"])
def test_computing_again_changes_nothing(family, shape):
    model = build(tiny_config(family, **shape)).train()
    batch = random_tokens(model.config)
    loss, gradients, count = losses_and_gradients(model, batch)
    model.recompute_blocks = True
    again, gradients_again, count_again = losses_and_gradients(model, batch)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert count == count_again


def test_blocks_run_twice_in_training_only(monkeypatch):
    model = build(tiny_config()).train()
    model.recompute_blocks = True
    batch = random_tokens(model.config)
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.loss(batch).backward()
    assert len(calls) == 2 * len(model.blocks)
    calls.clear()
    model.eval()
    model.loss(batch).backward()
    assert len(calls) == len(model.blocks)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor"
)  # dynamo's own
@each_shape
def test_compiled_blocks_are_the_same_model(shape):
    model = build(tiny_config("llama", **shape)).train().float()
    batch = random_tokens(model.config)
    loss, gradients, count = losses_and_gradients(model, batch)
    model.compile_blocks = True
    compiled, gradients_compiled, count_compiled = losses_and_gradients(model, batch)
    assert compiled.item() == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(gradients, gradients_compiled, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm().clamp(min=1e-3)
    assert count == count_compiled
    assert model.state_dict().keys() == build(model.config).state_dict().keys()
