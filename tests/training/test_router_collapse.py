"""Locked, collapsing and healthy routers in real runs."""

import json

import pytest
import torch

from growlm.growth import MultiplyExperts, Upcycle, grow
from growlm.verification import Status, check_router_collapse
from growlm.verification.router_collapse import (
    RouterCollapseDetector,
    RouterSnapshot,
    compute_expert_similarity,
)
from tests.model.tiny_models import EXPERTS, build, random_tokens, tiny_config
from tests.training.stopping import slow
from tests.training.tiny_run import events, rows, tiny_run

ZEROS = ("phases.moe.grow.0.upcycle.router_init=zeros", "phases.moe.steps=24")
UNBROKEN = (*ZEROS, "phases.moe.grow.0.upcycle.break_ties=false")
NO_LOSS = "model.routing.balance_weight=0"


def locked_at(run, phase="moe"):
    """The step of the first warning, and its text."""
    warnings = [e for e in events(run.run_dir, "warning") if e["phase"] == phase]
    return (warnings[0]["step"], warnings[0]["text"]) if warnings else None


@pytest.mark.parametrize("more", [(), (NO_LOSS,)], ids=["balancing loss", "none"])
@pytest.mark.parametrize("log_every", [1000, *slow(2)])
def test_a_constant_router_is_named_within_20_steps(tmp_path, more, log_every):
    run = tiny_run(tmp_path / "run", *UNBROKEN, f"callbacks.log_every={log_every}", *more)
    step, text = locked_at(run)
    assert step <= 20
    assert "router locked" in text
    assert "router_init=zeros" in text
    if more:  # with a balancing loss, rounding may part the rows before the end
        assert run.summary.phases[1].router_check.status is Status.FAILED


def test_without_balancing_loss_it_is_the_gradient_that_is_missing(tmp_path):
    run = tiny_run(tmp_path / "run", *UNBROKEN, NO_LOSS)
    assert "no gradient" in locked_at(run)[1]
    assert {row["router_grad_norm"] for row in rows(run.run_dir) if row["phase"] == "moe"} == {0.0}


def test_with_ties_broken_it_moves(tmp_path):
    run = tiny_run(tmp_path / "run", *ZEROS)
    assert "no gradient" not in str(locked_at(run))


def test_the_default_is_healthy_and_its_measures_are_in_the_history(tmp_path):
    run = tiny_run(tmp_path / "run", "phases.moe.steps=24")
    assert locked_at(run) is None
    measured = [row for row in rows(run.run_dir) if row["phase"] == "moe"]
    assert measured[0]["expert_similarity"] > measured[-1]["expert_similarity"]
    assert measured[-1]["router_distance"] > 0
    assert all(row["tied_choices"] == 0 for row in measured)
    summary = json.loads((run.run_dir / "summary.json").read_text())
    checks = [phase["router_check"] for phase in summary["phases"]]
    assert checks[0] is None
    assert checks[1]["status"] == "passed"


def test_the_first_step_of_equal_experts_is_no_lock():
    """They give their router a gradient of zero rightly."""
    watch = RouterCollapseDetector()
    assert not watch.observe(state(step=1, gradient_norm=0.0))
    assert watch.report().status is Status.NOT_APPLICABLE
    assert watch.observe(state(step=2, gradient_norm=0.0))


def state(**changes):
    healthy = {
        "step": 100,
        "gradient_norm": 0.1,
        "tied_choices": 0.0,
        "dead_experts": 0,
        "load_entropy": 0.9,
        "expert_similarity": 0.8,
        "router_distance": 0.5,
    }
    return RouterSnapshot(**(healthy | changes))


@pytest.mark.parametrize(
    ("changes", "words", "status"),
    [
        ({"load_entropy": 0.3}, "collapses onto few experts", Status.FINDING),
        ({"dead_experts": 2}, "2 experts received no token", Status.FINDING),
        ({"tied_choices": 0.9}, "90 % of the tokens", Status.FAILED),
    ],
)
def test_what_goes_wrong_is_said_once_in_words(changes, words, status):
    watch = RouterCollapseDetector()
    watch.observe(state(step=2))
    (text,) = watch.observe(state(**changes))
    assert words in text
    assert not watch.observe(state(**changes))
    assert watch.report().status is status
    assert watch.observe(state()) == []
    assert watch.report().status is Status.PASSED, "the report is of what was seen last"


def test_dead_experts_are_no_problem_early():
    assert not RouterCollapseDetector().observe(state(step=50, dead_experts=3))


def test_similarity_is_one_for_copies_and_falls_with_noise():
    model = build(tiny_config())
    experts = grow(model, [Upcycle(4)])
    assert compute_expert_similarity(experts) == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        for block in experts.blocks:
            up = block.feed_forward.experts.up
            up += torch.randn_like(up) * up.std()
    assert 0.2 < compute_expert_similarity(experts) < 0.8


def test_a_model_on_a_probe():
    model = build(tiny_config(**EXPERTS))
    probe = random_tokens(model.config)
    assert check_router_collapse(model, probe).status is Status.PASSED
    assert check_router_collapse(build(tiny_config()), probe).status is Status.NOT_APPLICABLE
    tied = grow(model, [MultiplyExperts(2)])
    assert check_router_collapse(tied, probe).status is Status.FINDING
