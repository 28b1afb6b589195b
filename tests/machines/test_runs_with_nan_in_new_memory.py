"""Whole runs in pairs, one as ever and one where new memory holds NaN: the same to the bit, whatever is varied."""

import pytest
import torch

from growlm.checkpoint import load_model, save_model
from growlm.huggingface import to_growlm, to_huggingface
from growlm.optim.adamw_8bit import get_unavailable_reason
from tests.distributed.on_devices import history, run_all
from tests.machines.imitation import NAN_IN_NEW_MEMORY, fill_new_memory
from tests.model.tiny_models import EXPERTS, assert_same_state, build, tiny_config
from tests.training.stopping import TIMES, assert_same_run
from tests.training.tiny_run import tiny_run


def machines(*values):
    """Parameters that `scripts/imitate_machines.py` runs."""
    return [pytest.param(value, marks=pytest.mark.machines) for value in values]


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.precision=32-true",),
        *machines(
            ("trainer.precision=bf16-mixed",),
            ("optimizer=sgd",),
            ("optimizer=adafactor",),
            ("optimizer=muon",),
            ("optimizer=adamw_8bit", "model.d_model=64", "model.head_dim=16", "model.d_ff=64"),
            ("phases.wide.optimizer_state=reset",),
            ("phases.wide.optimizer_state=exact",),
            ("phases.wide.optimizer_state=asymmetric", "phases.deep.optimizer_state=asymmetric"),
            ("model=small_llama", "model.n_layers=2"),
            ("recipe=copies", "growth.noise_std=0.02", "growth.scale_factor=1.5"),
            ("recipe=copies", "phases.deep.grow.0.deepen.init=copy"),
            ("phases.moe.grow.0.upcycle.drop_fraction=0.5",),
            ("model.routing.bias_step=0.01", "model.routing.z_weight=0.01"),
            ("trainer.activation_checkpointing=true", "phases.moe.accumulate=2"),
            ("checkpoint.save_optimizer=true", "trainer.validate_every=2"),
        ),
    ],
    ids=" ".join,
)
def test_a_run(overrides, tmp_path):
    if "optimizer=adamw_8bit" in overrides and (reason := get_unavailable_reason("cpu")):
        pytest.skip(reason)
    before = fill_new_memory(False)
    try:
        plain = tiny_run(tmp_path / "plain", *overrides).run_dir
        fill_new_memory(True)
        filled = tiny_run(tmp_path / "filled", *overrides).run_dir
    finally:
        fill_new_memory(before)
    assert_same_run(plain, filled)
    losses = [row["loss"] for row in history(filled) if "loss" in row]
    assert len(losses) > 8
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.machines
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_processes(strategy, tmp_path, monkeypatch):
    settings = [f"trainer.strategy={strategy}", "trainer.precision=32-true"]
    monkeypatch.delenv(NAN_IN_NEW_MEMORY, raising=False)
    run_all([[str(tmp_path / "plain"), *settings]])
    monkeypatch.setenv(NAN_IN_NEW_MEMORY, "1")
    run_all([[str(tmp_path / "filled"), *settings]])
    plain, filled = (
        [{k: v for k, v in row.items() if k not in TIMES} for row in history(tmp_path / name)]
        for name in ("plain", "filled")
    )
    assert plain == filled


@pytest.mark.parametrize("family", ["default", "llama"])
def test_conversion_there_and_back(family, tmp_path):
    model = build(tiny_config(family, **EXPERTS), dtype=torch.float32)
    before = fill_new_memory(True)
    try:
        save_model(model, tmp_path / "ours", {})
        to_huggingface(tmp_path / "ours", tmp_path / "hf")
        to_growlm(tmp_path / "hf", tmp_path / "back")
    finally:
        fill_new_memory(before)
    assert_same_state(load_model(tmp_path / "back")[0].state_dict(), model.state_dict())
