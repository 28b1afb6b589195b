"""What the planner says: arithmetic that holds, refusals that help."""

import json
import shlex
import sys
from dataclasses import replace

import pytest
import torch
from tiny_models import EXPERTS, tiny_config
from tiny_run import tiny_config as run_config
from tiny_run import tiny_run

from growlm import plan as plan_command
from growlm.config import load_config
from growlm.errors import UserError
from growlm.model import TransformerLM
from growlm.training.footprint import dry_run, optimizer_bytes
from growlm.training.optimizer import build_optimizer
from growlm.training.plan import make_plan
from growlm.training.planner import changes_that_fit, forecast

GB = 10**9


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_two_layers_tell_what_five_take(family, shape, bf16):
    """Extrapolated from one and two layers, against all five."""
    from growlm.training.footprint import _dry_run

    config = tiny_config(family, n_layers=5, d_model=64, d_ff=128, **shape)
    assert dry_run(config, 2, 32, bf16)[0] == _dry_run(config, 2, 32, bf16)[0]


def test_activations_grow_with_the_tokens():
    config = tiny_config(d_model=64)
    one, four = (dry_run(config, batch, 64, True)[0] for batch in (1, 4))
    assert 3.5 * one < four < 4.5 * one


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
def test_the_optimizers_state_is_counted_to_the_byte(name, shape):
    config = tiny_config(**shape)
    model = TransformerLM(config)
    settings = load_config(f"optimizer={name}").optimizer
    optimizer = build_optimizer(model, settings, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [optimizer.state[p] for p in model.parameters()]
    held = sum(
        value.nbytes
        for state in states
        for entry, value in state.items()
        if value is not None and entry != "step"
    )
    assert optimizer_bytes(config, name) == held


def test_three_stage_is_refused_on_24_gb_with_changes_that_fit():
    config = load_config("phase_plan=three_stage")
    plan = make_plan(config, 50257)
    table = forecast(config, plan, True, 23 * GB)
    assert [cost.phase.name for cost in table.refused] == ["large_moe"]

    changes = changes_that_fit(config, 50257, True, table.refused, 23 * GB)

    assert changes
    for change in changes:
        changed = load_config("phase_plan=three_stage", *change.overrides)
        assert not forecast(changed, make_plan(changed, 50257), True, 23 * GB).refused
        assert changed == change.apply(config), "the overrides do what was tried"


def test_a_smaller_batch_is_offered_where_it_is_enough():
    config = load_config("phase_plan=dense", "phases.dense.batch_size=64")
    table = forecast(config, make_plan(config, 1024), True, 2**62)
    limit = table.costs[0].footprint.peak // 2
    refused = forecast(config, make_plan(config, 1024), True, limit).refused
    first = changes_that_fit(config, 1024, True, refused, limit)[0]
    assert first.overrides == ("phases.dense.batch_size=1", "phases.dense.accumulate=64")


def test_nothing_is_offered_where_nothing_fits():
    config = load_config("phase_plan=three_stage")
    table = forecast(config, make_plan(config, 50257), True, 1000)
    assert changes_that_fit(config, 50257, True, table.refused, 1000) == []


def test_a_run_that_does_not_fit_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"phases\.moe=.*needs .* MB, there are 1\.0 MB"):
        tiny_run(tmp_path / "run", "trainer.memory_gb=0.001")
    assert not (tmp_path / "run").exists()


def test_the_table_is_printed_and_kept(tmp_path, capsys):
    run = tiny_run(tmp_path / "run")
    assert "activations" in capsys.readouterr().out
    phases = json.loads((run.run_dir / "plan.json").read_text())
    assert [phase["name"] for phase in phases] == ["dense", "moe", "wide", "deep"]
    assert all(phase["memory"]["peak"] > phase["memory"]["weights"] for phase in phases)
    assert all(phase["fits"] for phase in phases)


def test_accumulation_keeps_gradients_through_the_next_pass(tmp_path):
    whole, parts = (
        run_config(tmp_path, f"phases.dense.batch_size={b}", f"phases.dense.accumulate={a}")
        for b, a in ((4, 1), (4, 2))
    )
    peaks = [forecast(c, make_plan(c, 257), True, GB).costs[0].footprint for c in (whole, parts)]
    assert peaks[1].training_peak > peaks[0].training_peak
    assert replace(peaks[1], training_peak=0) == replace(peaks[0], training_peak=0)


@pytest.fixture
def run_plan_command(monkeypatch, capsys):
    def call(arguments):
        monkeypatch.setattr(sys, "argv", ["growlm.plan", *shlex.split(arguments)])
        with pytest.raises(SystemExit) as ended:
            plan_command.main()
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


def test_command_prints_a_table_or_json(run_plan_command):
    code, out, _ = run_plan_command("trainer.memory_gb=100")
    assert code == 0
    assert "activations" in out
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run_plan_command("trainer.memory_gb=100 format=json")
    assert code == 0
    assert json.loads(out)["memory_limit"] == 100 * GB


def test_command_refuses_in_words(run_plan_command):
    code, out, err = run_plan_command("phase_plan=three_stage tokenizer=bytes trainer.memory_gb=24")
    assert code == 2
    assert "2,155.79 M" in out
    assert "optimizer=adafactor" in err
    assert run_plan_command("format=xml")[0] == 2
    assert run_plan_command("phase_plan=nothing")[0] == 2
