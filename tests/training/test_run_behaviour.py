"""How a run goes: the same twice, one order of data, growth that is checked, state that is carried."""

import json

import pytest
import torch

from growlm.config import load_config
from growlm.data import PackedSamples
from growlm.growth.transforms.tensor_transforms import Split
from growlm.model import TransformerLM
from growlm.training import GrowthError, run_plan
from growlm.training.callbacks import growth_callback
from tests.training.tiny_run import rows, tiny_config, tiny_run

NO_WIDE_NOISE = ("growth.noise_std=0", "growth.scale_factor=2")


def artefact_bytes(run_dir, name="large_moe_final"):
    return (run_dir / "checkpoints" / name / "model.safetensors").read_bytes()


def losses(run_dir):
    return [row["loss"] for row in rows(run_dir)]


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_runs_are_bitwise_equal(tmp_path, threads):
    overrides = ("trainer.precision=bf16-mixed", "phases.moe.grow.0.upcycle.top_k=4")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = tiny_run(tmp_path / "first", *overrides)
        torch.rand(7)  # the global generator's state must not matter
        second = tiny_run(tmp_path / "second", *overrides)
    finally:
        torch.set_num_threads(before)
    assert losses(first.run_dir) == losses(second.run_dir)
    assert artefact_bytes(first.run_dir) == artefact_bytes(second.run_dir)


def test_another_seed_is_another_run(tmp_path):
    assert losses(tiny_run(tmp_path / "0").run_dir) != losses(
        tiny_run(tmp_path / "1", "seed=1").run_dir
    )


def test_phases_read_on_where_the_last_one_stopped(tmp_path, monkeypatch):
    read = []
    original = PackedSamples.__getitems__

    def spy(self, indices):
        read.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(PackedSamples, "__getitems__", spy)
    tiny_run(tmp_path / "run", "phases.moe.batch_size=2", "phases.wide.accumulate=3")
    assert read == list(range(4 * (4 + 2 + 3 * 4 + 4)))


def test_accumulated_passes_are_one_step(tmp_path):
    fp32 = ("trainer.precision=32-true",)
    whole = tiny_run(tmp_path / "whole", *fp32, "phases.dense.batch_size=8")
    parts = tiny_run(
        tmp_path / "parts", *fp32, "phases.dense.batch_size=2", "phases.dense.accumulate=4"
    )
    assert losses(parts.run_dir)[:3] == pytest.approx(losses(whole.run_dir)[:3], abs=1e-5)


def test_a_growth_that_loses_something_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Split, "share_exponent", lambda self, power: 0)
    with pytest.raises(GrowthError, match="functional"):
        tiny_run(tmp_path / "run", "recipe=copies")
    boundaries = json.loads((tmp_path / "run" / "boundaries.json").read_text())
    assert [b["passed"] for b in boundaries] == [True, False]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_equal_twins_are_a_finding_or_stop_the_run(tmp_path):
    run = tiny_run(tmp_path / "finding", *NO_WIDE_NOISE)
    statuses = [b.report.checks["symmetry"].status for b in run.summary.boundaries]
    assert statuses == ["passed", "finding", "not_applicable"]
    with pytest.raises(GrowthError, match="symmetry"):
        tiny_run(
            tmp_path / "required", *NO_WIDE_NOISE, "verification.require_symmetry_breaking=true"
        )


def test_unequal_moments_part_twins_without_noise(tmp_path):
    run = tiny_run(
        tmp_path / "run",
        *NO_WIDE_NOISE,
        "phases.wide.optimizer_state=asymmetric",
        "verification.require_symmetry_breaking=true",
    )
    assert "unequal moments" in run.summary.boundaries[1].report.checks["symmetry"].summary


@pytest.mark.parametrize(
    ("recipe", "because"),
    [
        ("copies", "noise makes copies differ"),
        ("fresh", "filler channels of LayerNorm drift"),
    ],
)
def test_what_an_exact_growth_is_not_is_said(tmp_path, capsys, recipe, because):
    run = tiny_run(tmp_path / "run", f"recipe={recipe}", "phases.wide.optimizer_state=exact")
    assert f"scaled, not exact: {because}" in capsys.readouterr().out
    boundaries = json.loads((run.run_dir / "boundaries.json").read_text())
    assert [bool(b["inexact_because"]) for b in boundaries] == [False, True, False]


def test_copied_layers_are_reported_and_the_run_goes_on(tmp_path):
    run = tiny_run(tmp_path / "run", "phases.deep.grow.0.deepen.init=copy")
    last = run.summary.boundaries[-1]
    assert not last.report.lossless
    assert last.report.checks["functional"].status == "finding"
    assert len(run.summary.phases) == 4


def test_moments_are_carried_or_reset(tmp_path, monkeypatch):
    states = []
    restore = growth_callback.restore_optimizer_states

    def spy(model, optimizers, found):
        if isinstance(model, TransformerLM):
            copied = {
                name: {entry: value.clone() for entry, value in state.items()}
                for name, state in found.items()
            }
            states.append(copied)
        restore(model, optimizers, found)

    monkeypatch.setattr(growth_callback, "restore_optimizer_states", spy)
    tiny_run(tmp_path / "run", "phases.wide.optimizer_state=reset")
    dense, moe, wide, deep = states
    assert dense == {}
    assert wide == {}
    new_in_moe = {name for name in moe if "router" in name}
    assert moe
    assert not new_in_moe
    assert all(float(state["step"]) == 4 for state in moe.values())
    assert deep["blocks.1.feed_forward.experts.up"]["exp_avg"].abs().sum() > 0
    assert not [
        name for name in deep if name.startswith("blocks.2.")
    ]  # the new block starts afresh


def test_carrying_changes_what_follows(tmp_path):
    carried = tiny_run(tmp_path / "carry")
    reset = tiny_run(tmp_path / "reset", "phases.moe.optimizer_state=reset")
    assert losses(carried.run_dir)[:4] == losses(reset.run_dir)[:4]
    assert losses(carried.run_dir)[5] != losses(reset.run_dir)[5]


def test_tokens_and_flops_as_length(tmp_path):
    config = tiny_config(
        tmp_path / "run",
        "phases.dense.steps=null",
        "phases.dense.tokens=300",
        "phases.moe.steps=null",
        "phases.moe.flops=1e8",
    )
    run = run_plan(config)
    assert run.summary.phases[0].steps == 3  # 300 tokens in steps of 128
    flops = [phase.flops / phase.steps for phase in run.summary.phases]
    assert run.summary.phases[1].steps == -(-1e8 // flops[1])


def test_validation_on_the_way(tmp_path):
    run = tiny_run(tmp_path / "run", "trainer.validate_every=2")
    history = (run.run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, history) if row.get("event") == "validation"]
    assert steps == [0, 2, 4] * 4


def test_lightning_callbacks_of_the_user_run(tmp_path):
    run = tiny_run(
        tmp_path / "run",
        "+callbacks.extra.timer._target_=lightning.pytorch.callbacks.Timer",
        "+callbacks.extra.timer.duration='00:12:00:00'",
    )
    assert len(run.summary.phases) == 4


def test_config_is_written_so_that_it_loads(tmp_path):
    run = tiny_run(tmp_path / "run")
    written = (run.run_dir / "config.yaml").read_text()
    assert "scale_factor: 1.5" in written
    assert "${" not in written
    assert load_config().name in written
