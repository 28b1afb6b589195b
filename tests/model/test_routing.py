"""Gates, losses and health measures of a router, against cases worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.model.keyed_rng import keyed_normal
from growlm.model.layers.routing import Routing, compute_router_health, route


def random_logits(num_tokens, num_experts, seed):
    return 2 * keyed_normal((num_tokens, num_experts), "logits", seed).double()


@given(
    num_tokens=st.integers(1, 40),
    num_experts=st.integers(2, 9),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_gates_are_the_renormalised_top_of_the_softmax(num_tokens, num_experts, seed, data):
    top_k = data.draw(st.integers(1, num_experts))
    logits = random_logits(num_tokens, num_experts, seed)

    routing = route(logits, top_k, break_ties=False)

    top = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    kept = top.values[:, :top_k]
    assert torch.equal(routing.selected_experts, top.indices[:, :top_k])
    assert (routing.gates - kept / kept.sum(dim=-1, keepdim=True)).abs().max() < 1e-14
    assert (routing.gates.sum(dim=-1) - 1).abs().max() < 1e-14


@given(seed=st.integers(0, 2**32), num_experts=st.integers(2, 9))
def test_load_counts_assignments(seed, num_experts):
    routing = route(random_logits(20, num_experts, seed), 2, break_ties=False)

    counts = [
        (routing.selected_experts == expert).sum().item() / 40 for expert in range(num_experts)
    ]

    assert routing.expert_load().tolist() == pytest.approx(counts)


def test_balance_loss_is_one_when_probabilities_are_uniform():
    chosen = torch.tensor([[0, 1], [0, 1], [0, 2]])  # whatever the load
    routing = Routing(torch.zeros(3, 4), chosen, torch.full((3, 2), 0.5), torch.zeros(3, 4))

    assert routing.balance_loss().item() == pytest.approx(1.0)


def test_balance_loss_worked_by_hand():
    # Two tokens, two experts, top-1. Probabilities (3/4, 1/4) and (1/2, 1/2); both choose expert 0.
    # f = (1, 0), P = (5/8, 3/8): 2 · 5/8.
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    routing = Routing(logits, torch.tensor([[0], [0]]), torch.ones(2, 1), logits)

    assert routing.balance_loss().item() == pytest.approx(1.25)


def test_balance_loss_pushes_probability_off_the_loaded_expert():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)

    route(logits, 1, break_ties=False).balance_loss().backward()

    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


def test_z_loss_worked_by_hand():
    # log(e^a + e^b): log 4 and log 2.
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    routing = route(logits, 2, break_ties=False)

    expected = (math.log(4) ** 2 + math.log(2) ** 2) / 2

    assert routing.z_loss().item() == pytest.approx(expected)


def test_margin_is_the_distance_from_the_last_chosen_to_the_next():
    logits = torch.tensor([[5.0, 1.0, 4.0, 3.5], [0.0, -1.0, -1.0, -3.0]])

    assert route(logits, 2, break_ties=False).selection_margin().tolist() == [0.5, 0.0]


def test_margin_is_infinite_when_every_expert_is_chosen():
    assert (
        route(torch.zeros(2, 3), 3, break_ties=False).selection_margin().tolist() == [math.inf] * 2
    )


def test_router_health_worked_by_hand():
    # Layer 0 even over four experts; layer 1 even over two of them: entropy ln 2 / ln 4 = 1/2.
    loads = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.0, 0.5, 0.0]])

    health = compute_router_health(loads)

    assert health.dead_experts == 2
    assert health.load_entropy == pytest.approx(0.75)
    assert health.max_load == pytest.approx(2.0)


def test_equal_logits_without_tie_breaking_choose_the_same_experts():
    load = route(torch.zeros(256, 8), 2, break_ties=False).expert_load()

    assert (load > 0).sum() == 2


def test_tie_breaking_spreads_equal_logits_over_all_experts():
    routing = route(torch.zeros(256, 8), 2, break_ties=True)

    assert routing.expert_load().min() > 0.5 / 8
    assert routing.expert_load().max() < 2 / 8
    assert torch.equal(routing.gates, torch.full((256, 2), 0.5))


def test_tie_breaking_is_the_same_at_every_call():
    first, second = (
        route(torch.zeros(64, 8), 2, break_ties=True).selected_experts for _ in range(2)
    )

    assert torch.equal(first, second)


@given(seed=st.integers(0, 2**32))
def test_tie_breaking_changes_no_choice_with_a_margin(seed):
    logits = random_logits(30, 6, seed)
    plain, broken = (route(logits, 2, break_ties=flag) for flag in (False, True))
    clear = plain.selection_margin() > 1e-6

    plain_sets, broken_sets = (
        r.selected_experts.sort(dim=-1).values[clear] for r in (plain, broken)
    )

    assert clear.any()
    assert torch.equal(plain_sets, broken_sets)
