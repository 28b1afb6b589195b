"""A run that begins with a trained model, and phases that only grow."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from growlm.checkpoint import load_model, read_optimizer_states
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.data import load_tokenizer
from growlm.growth import Upcycle, Widen
from growlm.runtime.errors import UserError
from growlm.training import Interrupted, run_plan
from tests.data.test_huggingface_tokenizer import llama_like, write
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.tiny_run import config_from, tiny_config, tiny_run

DENSE_ONLY = ("~phases.moe", "~phases.wide", "~phases.deep")
UNTRAINED = tuple(f"phases.{name}.steps=0" for name in ("dense", "moe", "wide", "deep"))


def weights(folder):
    return load_model(folder)[0].state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The artefacts of a run that keeps optimizer states, and its moe phase before its first step."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    tiny_run(run_dir, "checkpoint.save_optimizer=true", "phases.moe.save_initial_as=moe_model_init")
    return run_dir / "checkpoints"


def test_a_plan_on_an_artefact_grows_what_the_run_grew(whole, tmp_path):
    run_plan(config_from(whole / "dense_model", tmp_path / "run", *UNTRAINED))
    ours = tmp_path / "run" / "checkpoints"
    assert same(weights(ours / "dense_model"), weights(whole / "dense_model"))
    assert same(weights(ours / "moe_model_final"), weights(whole / "moe_model_init"))
    boundaries = json.loads((tmp_path / "run" / "boundaries.json").read_text())
    assert [b["lossless"] for b in boundaries] == [True] * 3


def test_phases_without_steps_say_nothing_that_is_not_so(whole, tmp_path, capsys):
    result = run_plan(config_from(whole / "dense_model", tmp_path / "run", *UNTRAINED))
    assert "nan" not in capsys.readouterr().out.lower()
    for name in ("summary.json", "plan.json", "checkpoints/training_history.jsonl"):
        assert "NaN" not in (result.run_dir / name).read_text()
    phases = json.loads((result.run_dir / "summary.json").read_text())["phases"]
    assert [p["first_loss"] for p in phases] == [None] * 4
    assert all(p["val_loss"] == p["initial_val_loss"] > 0 for p in phases)


@pytest.mark.parametrize(("mode", "steps"), [("carry", 6), ("reset", 2)])
def test_the_optimizers_state_goes_on_with_the_model(mode, steps, whole, tmp_path):
    settings = (*DENSE_ONLY, "phases.dense.steps=2", "checkpoint.save_optimizer=true")
    mode_setting = f"phases.dense.optimizer_state={mode}"
    run_plan(config_from(whole / "dense_model", tmp_path / "run", *settings, mode_setting))
    states = read_optimizer_states(tmp_path / "run" / "checkpoints" / "dense_model")
    assert {int(state["step"]) for state in states.values()} == {steps}


def test_a_stopped_run_goes_on(whole, tmp_path):
    settings = ("phases.dense.steps=0", "phases.wide.steps=0")
    run_plan(config_from(whole / "dense_model", tmp_path / "whole", *settings))
    run_dir, resume = tmp_path / "run", f"resume='{tmp_path / 'run'}'"
    for step in (2, 5):  # in moe, in deep: dense and wide leave states without a step
        resuming = [resume] if run_dir.exists() else []
        config = config_from(whole / "dense_model", run_dir, *settings, *resuming)
        with pytest.raises(Interrupted):
            run_plan(config, [SignalAt(step)])
    run_plan(config_from(whole / "dense_model", run_dir, *settings, resume))
    assert_same_run(tmp_path / "whole", run_dir)


def test_other_weights_than_the_run_began_with(whole, tmp_path):
    folder, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(whole / "dense_model", folder)
    with pytest.raises(Interrupted):
        run_plan(config_from(folder, run_dir), [SignalAt(2)])
    shutil.rmtree(folder)
    tiny_run(tmp_path / "other", "seed=1", *DENSE_ONLY, "checkpoint.save_optimizer=true")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "dense_model", folder)
    with pytest.raises(UserError, match=r"model\.path=.*the weights have changed"):
        run_plan(config_from(folder, run_dir, f"resume='{run_dir}'"))


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["model.d_model=32"], r"model\.d_model=32: the model in .* has 16"),
        (["tokenizer=embedded"], r"tokenizer\.name=embedded: .* tokenizer=bytes"),
        (["optimizer=sgd"], r"model\.path=.* optimizer_state=reset"),
        (["phases.dense.optimizer_state=exact"], r"optimizer_state=exact: .* carry or reset"),
    ],
)
def test_what_does_not_fit_the_model(overrides, wanted, whole, tmp_path):
    with pytest.raises(UserError, match=wanted):
        run_plan(config_from(whole / "dense_model", tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({"foo.exp_avg": (2,)}, "state of foo matches no parameter"),
        (
            {"embedding.weight.exp_avg": (2,)},
            r"exp_avg of embedding\.weight has shape \(2,\); must be",
        ),
        (
            {"embedding.weight.foo": (2,)},
            "optimizer state 'foo' of embedding.weight is of an unknown kind",
        ),
    ],
)
def test_a_state_that_fits_no_parameter(state, wanted, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "dense_model", folder)
    (folder / "manifest.json").unlink()
    file = folder / "optimizer.safetensors"
    save_file(load_file(file) | {name: torch.zeros(size) for name, size in state.items()}, file)
    with pytest.raises(UserError, match=wanted):
        run_plan(config_from(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["nowhere", ""])
def test_a_folder_without_a_model(folder, tmp_path):
    with pytest.raises(UserError, match=r"model\.path="):
        config_from(tmp_path / folder, tmp_path / "run")


def test_no_folder():
    with pytest.raises(UserError, match=r"model\.path=null: model=pretrained needs"):
        tiny_config("run", "model=pretrained")


def test_a_tokenizer_goes_with_the_model(tmp_path):
    folder = write(tmp_path / "tokenizer", llama_like, bos_token="<s>")
    setting = ("tokenizer=huggingface", f"tokenizer.path='{folder}'", "sequence_length=32")
    tiny_run(tmp_path / "run", *DENSE_ONLY, *setting)
    artefact = tmp_path / "run" / "checkpoints" / "dense_model"
    grow_checkpoint(
        artefact, tmp_path / "grown", [Upcycle(), Widen(scale_factor=2, new_channels="copies")]
    )
    wanted = load_tokenizer("huggingface", folder).fingerprint
    for place in (artefact, tmp_path / "grown"):
        assert load_tokenizer("huggingface", place).fingerprint == wanted
    shutil.rmtree(folder)
    setting = ("tokenizer=huggingface", *DENSE_ONLY)  # the path is the model's
    run_plan(config_from(artefact, tmp_path / "second", *setting, "phases.dense.steps=1"))
