"""The selection bias: moved by the loads alone, and grown like everything else."""

import pytest
import torch

from growlm.checkpoint import load_model
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.model import TransformerLM, parameter_report
from growlm.model.layers.routing import route
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)
from tests.training.tiny_run import rows, tiny_run

BIASED = {**EXPERTS, "router_bias_step": 0.01}


def test_only_the_selection_sees_it():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    plain = route(logits, 2, break_ties=False)
    biased = route(logits, 2, break_ties=False, selection_bias=torch.tensor([0.0, 0, 0, 5.0]))
    assert plain.selected_experts.tolist() == [[0, 1]]
    assert biased.selected_experts.tolist() == [[3, 0]]
    assert torch.allclose(biased.gates, torch.tensor([[-1.0, 2.0]]).softmax(-1))


def test_it_is_no_parameter_and_starts_at_zero():
    model = TransformerLM(tiny_config(**BIASED))
    without = TransformerLM(tiny_config(**EXPERTS))
    assert parameter_report(model) == parameter_report(without)
    assert model.blocks[0].feed_forward.selection_bias.abs().sum() == 0


def test_a_dense_model_gets_it_by_upcycling():
    grown = grow(TransformerLM(tiny_config(router_bias_step=0.01)), [Upcycle(4)])
    assert grown.blocks[0].feed_forward.selection_bias.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=1.5, new_channels="copies")],
        [Deepen(init="identity")],
        [MultiplyExperts(2)],
    ],
    ids=str,
)
def test_it_grows_with_the_experts(operators):
    model = build(tiny_config(**BIASED), std=0.2)
    bias = torch.tensor([0.3, -0.3, 0.1, 0.0])
    for block in model.blocks:
        block.feed_forward.selection_bias.copy_(bias)
    tokens = random_tokens(model.config)
    grown = grow(model, operators)
    copies = grown.config.num_experts // 4
    assert torch.equal(grown.blocks[-1].feed_forward.selection_bias, bias.double().repeat(copies))
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-12


def test_a_run_moves_it_against_the_load(tmp_path):
    more = ("model.routing.bias_step=0.05", "model.routing.balance_weight=0", "phases.moe.steps=12")
    run = tiny_run(tmp_path / "run", *more)
    model, _ = load_model(run.run_dir / "checkpoints" / "moe_model_final")
    for block in model.blocks:
        bias = block.feed_forward.selection_bias
        assert 0 < bias.abs().max() <= 12 * 0.05 + 1e-6
        assert torch.allclose(bias / 0.05, (bias / 0.05).round(), atol=1e-4), "whole steps"


@pytest.mark.slow
def test_it_evens_the_load(tmp_path):
    """From a router that favours few experts, without any balancing loss."""
    skewed = (
        "model.routing.balance_weight=0",
        "phases.moe.steps=60",
        "phases.moe.lr=1e-5",
        "phases.moe.grow.0.upcycle.router_std=1",
    )
    entropies = []
    for step in ("0", "0.1"):
        run = tiny_run(tmp_path / step, *skewed, f"model.routing.bias_step={step}")
        entropies.append([r["load_entropy"] for r in rows(run.run_dir) if r["phase"] == "moe"][-1])
    assert entropies[1] > entropies[0] + 0.02
