"""What an earlier version wrote still loads, resumes, converts and reports: `fixtures/format_1`."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from growlm import convert, evaluate, generate, report, verify
from growlm import grow as grow_command
from growlm.checkpoint import load_model
from growlm.config import load_config
from growlm.config.composing.resumed_config import load_saved_config
from growlm.config.load import to_run_config
from growlm.config.phase_plan import make_plan
from growlm.training import plan_runner as training_run
from growlm.training import run_plan
from tests.commands.processes import run_command
from tests.distributed.on_devices import outcome, start
from tests.training.stopping import slow
from tests.training.tiny_run import TINY_PLAN, rows

FIXTURES = Path(__file__).with_name("fixtures") / "format_1"
MADE = json.loads((FIXTURES / "made.json").read_text())
CHECKPOINTS = sorted(MADE["logits"])
EXPORTS = {
    "growlm": "gpt/checkpoints/moe_model_final",
    "llama": "llama/checkpoints/dense_model",
    "mixtral": "llama/checkpoints/moe_model_final",
}
LOSS_TOLERANCE = 1e-4
"""Losses of 5.5 in fp32, after a dozen steps on another processor."""


@pytest.fixture
def fixture(tmp_path):
    """A copy of a fixture, which may be written to."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: what it prints. It must succeed."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            module.main()
        out = capsys.readouterr()
        assert ended.value.code == 0, out.err
        return out.out

    return call


@torch.no_grad()
def logits(model):
    return model.eval()(torch.tensor(MADE["tokens"]))[:, -1, :3].flatten()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_load(name):
    model, _ = load_model(FIXTURES / name)
    assert logits(model).tolist() == pytest.approx(MADE["logits"][name], abs=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_grow_on_disk_and_are_verified(name, run, tmp_path):
    old, new = FIXTURES / name, tmp_path / "large"
    run(grow_command, f"checkpoint={old}", f"out={new}", "grow=[{widen: {scale_factor: 2}}]")
    assert run(verify, f"old={old}", f"new={new}").splitlines()[-1] == "passed"
    has_state = (old / "optimizer.safetensors").exists()
    assert (new / "optimizer.safetensors").exists() == has_state


def test_an_optimizers_state_is_carried_on(tmp_path):
    phase = {"steps": 2, "batch_size": 4, "optimizer_state": "carry"}
    config = load_config(
        "phase_plan=dense",
        "model=pretrained",
        f"model.path={FIXTURES / 'gpt/checkpoints/moe_model_final'}",
        *(override for override in TINY_PLAN if not override.startswith(("phases.", "growth."))),
        *(f"phases.dense.{key}={value}" for key, value in phase.items()),
        "logger=none",
        "trainer.precision=32-true",
        f"run_dir={tmp_path / 'run'}",
    )
    run_plan(config)
    assert len(rows(tmp_path / "run")) == 2


def test_text_and_scores_of_a_checkpoint(run):
    folder = FIXTURES / "gpt/checkpoints/moe_model_final"
    assert run(generate, f"checkpoint={folder}", "prompt=Once upon", "max_new_tokens=3")
    small = ["data.documents=40", "sequence_length=32", "limit=4"]
    assert "bits per byte" in run(evaluate, f"checkpoint={folder}", *small)


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_come_back(name, run, tmp_path):
    run(
        convert,
        f"source={FIXTURES / 'huggingface' / name}",
        f"out={tmp_path / 'back'}",
        "to=growlm",
    )
    found = load_file(tmp_path / "back" / "model.safetensors")
    expected = load_file(FIXTURES / EXPORTS[name] / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_load_in_transformers(name, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = FIXTURES / "huggingface" / name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=name == "growlm"
    ).eval()
    with torch.no_grad():
        found = model(torch.tensor(MADE["tokens"])).logits[:, -1, :3].flatten()
    assert found.tolist() == pytest.approx(MADE["logits"][EXPORTS[name]], abs=1e-5)


@pytest.fixture
def train(tmp_path, tmp_path_factory):
    """Run the training command in a process of its own, and return what it printed."""

    def run(*arguments):
        streams = tmp_path_factory.mktemp("streams")
        done = run_command("growlm.train", *arguments, folder=tmp_path, streams=streams)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", ["stopped", *slow("stopped_fsdp")])
def test_a_stopped_run_of_an_earlier_format_resumes(name, fixture, train):
    run_dir = fixture(name)
    train(f"resume={run_dir}", "trainer.strategy=auto")
    assert_finished(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [("stopped", "ddp"), ("stopped_fsdp", "fsdp")])
def test_a_stopped_run_goes_on_with_two_processes(name, strategy, fixture):
    run_dir = fixture(name)
    command = ["growlm.train", f"resume={run_dir}", f"trainer.strategy={strategy}"]
    ended = outcome(start(command))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert_finished(run_dir)


def assert_finished(run_dir):
    # Since then, every step near a growth has a row.
    losses = [row["loss"] for row in rows(run_dir) if "loss" in row and row["step"] in (1, 2, 4)]
    assert losses == pytest.approx(MADE["losses"], abs=LOSS_TOLERANCE)
    assert (run_dir / "summary.json").exists()


def test_a_finished_sweep_is_finished_and_reported(fixture, run, tmp_path):
    sweep = fixture("sweep")
    out = run(report, sweep)
    assert all(noise in out for noise in ("0.001", "0.01"))
    assert (sweep / "report.html").exists()


def test_finished_and_stopped_runs_are_reported(fixture, run, tmp_path):
    folders = [fixture(name) for name in ("gpt", "llama", "stopped", "stopped_fsdp")]
    run(report, *folders, f"out={tmp_path / 'page.html'}")
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize("is_used", [True, False])
def test_kept_phases_are_used_or_missed(is_used, fixture, tmp_path, monkeypatch):
    """Keys cover growlm's code, so that a later version misses what was kept; given the keys, it uses it."""
    (job,) = FIXTURES.glob("sweep/0_*")
    config, cache = load_saved_config(job), fixture("phase_cache")
    keys = json.loads((job / "resume" / "phase_keys.json").read_text())["keys"]
    if is_used:
        monkeypatch.setattr(training_run, "compute_phase_cache_keys", lambda *_: keys)
    summary = run_plan(
        replace(config, run_dir=str(tmp_path), reuse=replace(config.reuse, folder=str(cache)))
    ).summary
    assert (summary.reused is not None) == is_used
    before = json.loads((job / "summary.json").read_text())["phases"]
    for phase, expected in zip(summary.phases, before, strict=True):
        assert phase.final_loss == pytest.approx(expected["final_loss"], abs=LOSS_TOLERANCE)


@pytest.mark.parametrize(
    "path", sorted((FIXTURES / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_configs_are_read(path):
    """The `config.yaml` of a run of each plan that was shipped: the same phases, as planned models."""
    merged = OmegaConf.load(path)
    if path.stem == "grow_pretrained":
        merged.model.path = str(FIXTURES / merged.model.path)
    config = to_run_config(merged)
    plan = make_plan(config, tokenizer_vocab_size=257)
    assert [phase.name for phase in plan.phases] == list(OmegaConf.load(path).phases)
