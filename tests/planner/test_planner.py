"""What the planner says: arithmetic that holds, refusals that help."""

import json
import re
import shlex
import sys
from dataclasses import replace

import pytest
import torch

from growlm import plan as plan_command
from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.model import TransformerLM, training_flops_per_token
from growlm.optim.optimizer_factory import build_optimizer
from growlm.planner import forecast as planner
from growlm.planner.forecast import find_fitting_changes, forecast_plan
from growlm.planner.memory_estimate import optimizer_state_bytes
from growlm.planner.meta_trace import _trace_pass_cached, trace_pass
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from tests.model.tiny_models import EXPERTS, tiny_config
from tests.training.stopping import slow
from tests.training.tiny_run import tiny_config as run_config
from tests.training.tiny_run import tiny_run

GB = 10**9


def on(memory, precision="bf16-mixed"):
    return Machine("cpu", precision, memory)


MIXED = EXPERTS | {"expert_d_ff": 48, "layers": {"mixture": [False, True, True]}}


@pytest.mark.parametrize("checkpointing", [True, *slow(False)])
@pytest.mark.parametrize("bf16", [True, *slow(False)])
@pytest.mark.parametrize("shape", [{}, EXPERTS, MIXED], ids=["dense", "experts", "mixed"])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_two_layers_tell_what_five_do(family, shape, bf16, checkpointing):
    """Extrapolated from one and two layers, against all five."""
    config = tiny_config(family, n_layers=5, d_model=64, d_ff=128, **shape)
    whole = _trace_pass_cached(config, 2, 32, bf16, checkpointing)
    found = trace_pass(config, 2, 32, bf16, checkpointing)
    assert found.activations == whole.activations
    assert found.half_flops == whole.half_flops
    assert found.single_flops == whole.single_flops
    assert found.other_bytes == pytest.approx(whole.other_bytes, rel=0.01)
    assert found.num_calls == pytest.approx(whole.num_calls, rel=0.01)
    assert found.peak == pytest.approx(whole.peak, rel=0.05)


def test_masks_of_packed_documents_are_counted_once():
    """One that all blocks with a window share, and one for the others."""
    windows = ["full", "window", "window"]
    config = tiny_config(n_layers=3, attention={"window": 8}, layers={"attention": windows})
    whole = _trace_pass_cached(config, 2, 64, False, False, document_mask=True)
    found = trace_pass(config, 2, 64, False, document_mask=True)
    assert found.activations == whole.activations
    assert found.forward_peak == pytest.approx(whole.forward_peak, rel=0.01)


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
def test_products_of_the_dry_run_are_those_of_the_formula(shape):
    """The formula's figures are compared with a real run in test_flops.py."""
    config = tiny_config("llama", d_model=64, d_ff=128, vocab_size=512, **shape)
    work = trace_pass(config, 2, 32, bf16=True)
    formula = training_flops_per_token(config, 32) * 2 * 32
    assert work.half_flops + work.single_flops == pytest.approx(formula, rel=0.01)


def test_activations_grow_with_the_tokens():
    config = tiny_config(d_model=64)
    one, four = (trace_pass(config, batch, 64, True).activations for batch in (1, 4))
    assert 3.5 * one < four < 4.5 * one


def test_checkpointing_keeps_the_inputs_of_blocks():
    config = tiny_config(d_model=64, d_ff=256, n_layers=12)
    kept, again = (trace_pass(config, 8, 64, True, c) for c in (False, True))
    assert again.activations < 0.3 * kept.activations
    assert 1.1 * kept.half_flops < again.half_flops < 1.4 * kept.half_flops


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
    assert optimizer_state_bytes(config, name) == held


def test_three_stage_is_refused_on_24_gb_with_changes_that_fit():
    config = load_config("phase_plan=three_stage")
    plan = make_plan(config, 50257)
    table = forecast_plan(config, plan, on(23 * GB))
    assert [cost.phase.name for cost in table.phases_not_fitting] == ["large_moe"]

    changes = find_fitting_changes(config, 50257, table)

    assert changes
    for change in changes:
        changed = load_config("phase_plan=three_stage", *change.overrides)
        assert not forecast_plan(changed, make_plan(changed, 50257), on(23 * GB)).phases_not_fitting
        assert changed == change.apply(config), "the overrides do what was tried"


def test_a_smaller_batch_is_offered_where_it_is_enough():
    config = load_config("phase_plan=dense", "phases.dense.batch_size=64")
    plan = make_plan(config, 1024)
    one = load_config("phase_plan=dense", "phases.dense.batch_size=1")
    needed = forecast_plan(one, make_plan(one, 1024), on(2**62)).phase_forecasts[0].memory.peak
    changes = find_fitting_changes(
        config, 1024, forecast_plan(config, plan, on(round(1.1 * needed)))
    )
    assert changes[0].overrides == ("phases.dense.batch_size=1", "phases.dense.accumulate=64")


def test_what_costs_time_only_is_offered_first():
    config = load_config("phase_plan=dense", "phases.dense.batch_size=64")
    plan = make_plan(config, 1024)
    table = forecast_plan(config, plan, on(2**62))
    limit = round(0.7 * table.phase_forecasts[0].memory.peak)
    changes = find_fitting_changes(config, 1024, forecast_plan(config, plan, on(limit)))
    assert changes[0].overrides == ("trainer.activation_checkpointing=true",)


def test_half_precision_is_offered_where_it_was_not_wanted(monkeypatch):
    monkeypatch.setattr(planner, "_less_growth", lambda config: iter(()))
    config = load_config("phase_plan=dense", "trainer.precision=32-true")
    changes = list(
        planner._candidate_changes(config, make_plan(config, 1024).phases, on(GB, "32-true"))
    )
    assert ("trainer.precision=bf16-mixed",) in [change.overrides for change in changes]


def test_nothing_is_offered_where_nothing_fits():
    config = load_config("phase_plan=three_stage")
    table = forecast_plan(config, make_plan(config, 50257), on(1000))
    assert find_fitting_changes(config, 50257, table) == []


def test_a_run_that_does_not_fit_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"phases\.dense=.*needs .* MB; 1 MB available"):
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
        run_config(
            tmp_path,
            "trainer.keep_freed_memory=false",
            f"phases.dense.batch_size={b}",
            f"phases.dense.accumulate={a}",
        )
        for b, a in ((4, 1), (4, 2))
    )
    peaks = [
        forecast_plan(c, make_plan(c, 257), on(GB)).phase_forecasts[0].memory
        for c in (whole, parts)
    ]
    assert peaks[1].training_peak > peaks[0].training_peak
    assert replace(peaks[1], training_peak=0) == replace(peaks[0], training_peak=0)


@pytest.fixture
def run_plan_command(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)  # narrow tables are split

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
    assert "2.16 B" in out
    assert re.search(r"activation_checkpointing=true optimizer=(adafactor|adamw_8bit)", err)
    assert run_plan_command("format=xml")[0] == 2
    assert run_plan_command("phase_plan=nothing")[0] == 2


BATCHES = " ".join(f"phases.{name}.batch_size=64" for name in ("dense", "moe", "wide", "deep"))


def test_command_shows_every_strategy_on_several_devices(run_plan_command):
    asked = f"trainer.devices=64 cluster=dgx_h100 {BATCHES}"
    code, out, _ = run_plan_command(asked)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run_plan_command(f"{asked} trainer.strategy=fsdp format=json")
    table = json.loads(out)
    assert (code, table["devices"], table["strategy"]) == (0, 64, "fsdp")
    by_name = {other["strategy"]: other["phases"] for other in table["strategies"]}
    assert list(by_name) == ["ddp", "fsdp", "expert"]
    assert by_name["fsdp"] == table["phases"]
    for ddp, fsdp, expert in zip(*by_name.values(), strict=True):
        assert fsdp["memory"]["weights"] < ddp["memory"]["weights"]
        assert set(ddp["sent"]) == {"all_reduce"}
        assert set(fsdp["sent"]) == {"all_gather", "reduce_scatter"}
        assert ("all_to_all" in expert["sent"]) == bool(ddp["model"]["num_experts"])
        assert 0 < ddp["seconds"]["waiting"] <= ddp["seconds"]["communication"]


def test_command_on_several_numbers_of_devices(run_plan_command):
    code, out, _ = run_plan_command(f"devices=1,8 cluster=dgx_h100 {BATCHES}")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows if row and row[0] in ("dense", "moe")] == [
        ["dense", "1", "14.8"],
        ["moe", "1", "73.9"],
    ]
    assert sum("expert" in row for row in rows) == 3, "of phases with experts"
    code, _, err = run_plan_command("devices=1,64 cluster=dgx_h100")
    assert code == 2
    assert BATCHES in err
    assert run_plan_command("devices=1,none")[0] == 2
