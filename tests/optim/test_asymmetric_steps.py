"""How `asymmetric` scales steps: a rate of its own for what is new, and the bias correction it misses."""

import pytest
import torch

from growlm.growth import Widen
from growlm.growth.step_scaling import AsymmetricScaling
from tests.model.tiny_models import build, tiny_config
from tests.training.grown_training import LR, OPTIMIZERS, Training

WIDEN = [Widen(scale_factor=2, new_channels="copies")]


def largest_update(beta2, corrected):
    """Of the embedding's new columns over ten steps after a growth late in training, in units of the rate."""
    settings = type(OPTIMIZERS["adamw"])(beta2=beta2, weight_decay=0.0)
    training = Training(build(tiny_config(), std=0.2), settings).steps(10)
    for state in training.optimizer.state.values():
        state["step"].fill_(
            5000.0
        )  # PyTorch's one count per tensor: nothing is bias-corrected any more
    training.grow(WIDEN, "asymmetric", peak=1.0, warmup=1)
    betas = (0.9, beta2) if corrected else None
    scaling = AsymmetricScaling(training.scaling.factors, 1.0, 1, betas)
    scaling._old_steps = dict.fromkeys(scaling.factors, 5000.0)
    training.scaling = scaling
    largest = 0.0
    for _ in range(10):
        before = training.model.embedding.weight.detach().clone()
        training.steps(1)
        moved = (training.model.embedding.weight.detach() - before)[:, 16:]
        largest = max(largest, moved.square().mean().sqrt().item() / LR)
    return largest


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_a_new_slices_first_steps_are_no_larger_than_the_rate(beta2):
    assert 0.3 < largest_update(beta2, corrected=True) < 1.1


def test_without_the_correction_they_would_be_several_times_the_rate():
    assert largest_update(0.999, corrected=False) > 3


def scales(count, peak=1.3, warmup=4):
    training = Training(build(tiny_config()), OPTIMIZERS["sgd"]).steps(2)
    training.grow(WIDEN, "asymmetric", peak, warmup)
    found = []
    for _ in range(count):
        training.steps(1)
        found.append(training.scaling.new_entry_factor("embedding.weight"))
    return found


def test_the_rate_climbs_to_its_peak_and_comes_back():
    assert scales(10) == pytest.approx([1.075, 1.15, 1.225, 1.3, 1.225, 1.15, 1.075, 1, 1, 1])


def test_old_entries_are_stepped_as_if_nothing_were_new():
    """The whole step, with the mask, against the same step without it."""
    plain, masked = (
        Training(build(tiny_config(), std=0.2), OPTIMIZERS["sgd"], clip=float("inf")).steps(3)
        for _ in range(2)
    )
    plain.grow(WIDEN, "asymmetric", peak=1.0, warmup=1)
    masked.grow(WIDEN, "asymmetric", peak=3.0, warmup=1)
    before = plain.model.embedding.weight.detach().clone()
    plain.steps(1)
    masked.steps(1)
    one, three = (t.model.embedding.weight.detach() - before for t in (plain, masked))
    assert torch.allclose(one[:, :16], three[:, :16], rtol=1e-12, atol=0)
    assert torch.allclose(3 * one[:, 16:], three[:, 16:], rtol=1e-6, atol=1e-15)


def test_decay_is_not_scaled():
    settings = type(OPTIMIZERS["adamw"])(weight_decay=0.5)
    training = Training(build(tiny_config(), std=0.2), settings).steps(3)
    training.grow(WIDEN, "asymmetric", peak=50.0, warmup=1)
    name = "blocks.0.feed_forward.up.weight"
    weight = training.model.get_parameter(name)
    before = weight.detach().clone()
    for parameter in training.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = training.optimizer.state[weight]
    state["exp_avg"].zero_()
    training.scaling.before_step(training.model, training.optimizer, 1.0)
    training.optimizer.step()
    training.scaling.after_step()
    assert torch.allclose(weight.detach(), before * (1 - 0.5 * LR), rtol=1e-12)


def test_moments_handed_on_are_those_of_one_age():
    """After settling, PyTorch's single step count corrects old and new entries alike."""
    training = Training(build(tiny_config(), std=0.2)).steps(40).grow(WIDEN, "asymmetric").steps(5)
    named = {n: training.optimizer.state[p] for n, p in training.model.named_parameters()}
    raw = named["embedding.weight"]["exp_avg_sq"].clone()
    training.scaling.unscale_state(named)
    settled = named["embedding.weight"]["exp_avg_sq"]
    assert torch.equal(settled[:, :16], raw[:, :16])
    ratio = (1 - 0.95**45) / (1 - 0.95**5)
    assert torch.allclose(settled[:, 16:], raw[:, 16:] * ratio)


def test_an_optimizer_without_state_is_rewarmed_too():
    settings = type(OPTIMIZERS["sgd"])(**{**vars(OPTIMIZERS["sgd"]), "momentum": 0.0})
    training = Training(build(tiny_config()), settings).steps(2).grow(WIDEN, "asymmetric")
    assert training.scaling.factors
    training.steps(3)


def test_memory_is_one_more_copy_of_what_is_scaled():
    training = Training(build(tiny_config())).steps(2).grow(WIDEN, "asymmetric")
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    training.scaling.before_step(training.model, training.optimizer, 1.0)
    held = [tensor for entry in training.scaling._updates._old_values for tensor in entry[1:2]]
    assert held
    assert not any(
        isinstance(part, torch.Tensor)
        for e in training.scaling._updates._old_values
        for part in e[2:]
    )


def test_a_scaling_of_one_costs_nothing():
    training = Training(build(tiny_config()), OPTIMIZERS["sgd"]).steps(2)
    training.grow(WIDEN, "asymmetric", 1.3, 2).steps(5)
    training.scaling.before_step(training.model, training.optimizer, 1.0)
    assert not training.scaling._updates._old_values
