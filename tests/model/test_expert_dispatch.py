"""Grouped dispatch computes what the loop over experts computes, and computes it the same every time."""

import pytest
import torch

from growlm.model.keyed_rng import keyed_normal
from growlm.model.layers.experts import CPU_MAX_ROW_MULTIPLE, MixtureOfExperts
from growlm.model.layers.routing import RoutingLog, route
from tests.model.tiny_models import FAMILIES, tiny_config

TOKENS, WIDTH, HIDDEN, NUM_EXPERTS = 96, 32, 48, 8


def mixture(family, top_k):
    config = tiny_config(family, d_model=WIDTH, d_ff=HIDDEN, num_experts=NUM_EXPERTS, top_k=top_k)
    layer = MixtureOfExperts(config)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(0.2 * keyed_normal(tuple(parameter.shape), "mixture", name))
    return layer


def outputs_and_gradients(layer, dispatch, starved_expert=None, tokens=TOKENS):
    """What the layer computes and the gradients of its input, router and every expert parameter."""
    layer.zero_grad()
    x = keyed_normal((tokens, WIDTH), "input").requires_grad_()
    logits = layer.router(x)
    if starved_expert is not None:
        logits = logits - 100 * torch.eye(NUM_EXPERTS)[starved_expert]
    routing = route(logits, layer.top_k, break_ties=False)
    out = dispatch(x, routing)
    (out * keyed_normal((tokens, WIDTH), "output gradient")).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"output": out.detach(), "input": x.grad, **gradients}, routing


def refuse(*_):
    raise AssertionError("the grouped path fell back to the loop")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_k", [2, 4])
@pytest.mark.parametrize("starved_expert", [None, 3])
def test_grouped_equals_loop(family, top_k, starved_expert, monkeypatch):
    layer = mixture(family, top_k)
    expected, routing = outputs_and_gradients(layer, layer.experts.forward_loop, starved_expert)
    assert (starved_expert is None) == bool((routing.expert_load() > 0).all())
    monkeypatch.setattr(layer.experts, "forward_loop", refuse)

    actual, _ = outputs_and_gradients(layer, layer.experts, starved_expert)

    assert actual.keys() == expected.keys()
    for name in expected:
        largest = expected[name].abs().max()
        assert largest > 0
        assert (actual[name] - expected[name]).abs().max() <= 2e-6 * max(1.0, largest), name


def test_starved_expert_gets_no_gradient():
    layer = mixture("default", 2)

    gradients, _ = outputs_and_gradients(layer, layer.experts, starved_expert=3)

    assert gradients["experts.up"][3].abs().max() == 0
    assert gradients["experts.down_bias"][3].abs().max() == 0


def test_double_precision_and_unaligned_widths_take_the_loop():
    config = tiny_config("llama", d_model=6, d_ff=10, num_experts=4, top_k=2)
    layer = MixtureOfExperts(config)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(keyed_normal(tuple(parameter.shape), "unaligned", name))
    x = keyed_normal((2, 5, 6), "unaligned input")

    assert (layer(x) - layer.double()(x.double())).abs().max() < 1e-4


@pytest.fixture
def two_threads():
    """Atomic additions show only where two threads make them, on more than a few thousand numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_dispatch_is_bitwise_repeatable(family, dtype):
    layer = mixture(family, top_k=4)

    def run():
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            return outputs_and_gradients(layer, layer.experts, tokens=2048)[0]

    first = run()

    assert first["output"].dtype == dtype
    for _ in range(5):
        again = run()
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_autocast_leaves_the_router_in_full_precision():
    layer = mixture("default", 2)
    x = keyed_normal((1, TOKENS, WIDTH), "input")
    plain, cast = RoutingLog(), RoutingLog()
    layer(x, plain)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x, cast)

    assert torch.equal(plain.routings[0].logits, cast.routings[0].logits)
    assert torch.equal(plain.routings[0].selected_experts, cast.routings[0].selected_experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 96, 700])
def test_slots_are_all_different_and_each_experts_rows_are_its_own(tokens, dtype):
    layer = mixture("default", 2)
    assigned = torch.randint(NUM_EXPERTS, (2 * tokens,), generator=torch.Generator().manual_seed(1))

    slots, ends = layer.experts._assign_rows(assigned, dtype)

    assert len(set(slots.tolist())) == len(slots)
    owner = torch.searchsorted(ends, slots.to(ends.dtype), right=True)
    assert torch.equal(owner, assigned)
    largest = 1.3 if dtype is torch.bfloat16 else 1
    assert len(slots) <= int(ends[-1]) <= largest * len(slots), "padding stays small"


def test_many_tokens_are_padded_to_few_different_sizes():
    """In half precision the CPU's library keeps a kernel for every number of rows."""
    layer = mixture("default", 2)
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(50):
        assigned = torch.randint(NUM_EXPERTS, (4096,), generator=generator)
        _, ends = layer.experts._assign_rows(assigned, torch.bfloat16)
        sizes |= set(ends.diff(prepend=ends.new_zeros(1)).tolist())
    assert all(size % CPU_MAX_ROW_MULTIPLE == 0 for size in sizes)
    assert len(sizes) <= 4
