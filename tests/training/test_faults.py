"""What goes wrong on the way: each stops the run in words, and what was good stays."""

import json
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from growlm.checkpoint import load_model, read_optimizer_states
from growlm.config import load_config
from growlm.config.composing.resumed_config import resolve_resume_config
from growlm.runtime.errors import DiskError, RunError, UserError
from growlm.training import Interrupted, run_plan
from growlm.training.nan_check import NonFiniteError
from growlm.training.run_folder import create_run_folder, open_run_folder
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import TINY, events, tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_plan(tiny_config(tmp_path_factory.mktemp("whole") / "run")).run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with artefacts, and states of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(folder, "checkpoint.save_optimizer=true"), [SignalAt(6)])
    return folder


class AtStep(Callback):
    """Does something to the stage before, or to its gradients in, a step of the run."""

    def __init__(self, global_step, act, hook="on_train_batch_start"):
        self.global_step = global_step
        setattr(self, hook, lambda trainer, stage, *_: self.look(trainer, stage, act))

    def look(self, trainer, stage, act):
        if stage.phase.first_step + trainer.global_step + 1 == self.global_step:
            act(stage)


def spoil_weight(stage):
    with torch.no_grad():
        stage.model.blocks[1].attention.key.weight[2, 3] = float("nan")


def spoil_gradient(stage):
    stage.model.embedding.weight.grad[0, 0] = float("inf")


def test_nan_in_a_weight_is_named_and_the_state_before_it_is_good(whole, tmp_path):
    settings = ("checkpoint.every_steps=1", "trainer.on_nonfinite=skip")  # no skip mends a weight
    run_dir = tmp_path / "run"
    named = r"phase wide, step 2: the weight blocks.1.attention.key.weight holds NaN"
    with pytest.raises(NonFiniteError, match=named):
        run_plan(tiny_config(run_dir, *settings), [AtStep(10, spoil_weight)])
    run_plan(tiny_config(run_dir, f"resume='{run_dir}'"))
    assert_same_run(whole, run_dir)


def test_infinity_in_a_gradient_is_named(tmp_path):
    named = "phase moe, step 3: the gradient of embedding.weight holds infinity"
    with pytest.raises(NonFiniteError, match=named):
        run_plan(tiny_config(tmp_path / "run"), [AtStep(7, spoil_gradient, "on_after_backward")])


@pytest.mark.parametrize("mode", ["exact", *slow("carry", "asymmetric")])
def test_a_step_is_skipped_where_that_is_allowed(mode, tmp_path):
    states = [f"phases.{name}.optimizer_state={mode}" for name in ("moe", "wide", "deep")]
    before, after = [], []
    watch = [
        AtStep(
            10, lambda stage: before.append(stage.model.state_dict()["embedding.weight"].clone())
        ),
        AtStep(
            11, lambda stage: after.append(stage.model.state_dict()["embedding.weight"].clone())
        ),
        AtStep(10, spoil_gradient, "on_after_backward"),
    ]
    run = run_plan(tiny_config(tmp_path / "run", "trainer.on_nonfinite=skip", *states), watch)
    assert torch.equal(before[0], after[0])
    skipped = [e for e in events(run.run_dir, "warning") if "step skipped" in e["text"]]
    assert [(e["phase"], e["step"]) for e in skipped] == [("wide", 2)]
    final, _ = load_model(run.run_dir / "checkpoints" / "large_moe_final")
    assert all(torch.isfinite(p).all() for p in final.parameters())


def test_a_run_that_skips_every_step_stops(tmp_path):
    class Always(Callback):
        def on_after_backward(self, trainer, stage):
            spoil_gradient(stage)

    settings = ("trainer.on_nonfinite=skip", "phases.dense.steps=20")
    with pytest.raises(NonFiniteError, match="step 11"):
        run_plan(tiny_config(tmp_path / "run", *settings), [Always()])


def test_out_of_memory_comes_with_advice(tmp_path):
    config = tiny_config(tmp_path / "run", "phases.wide.batch_size=2048")
    with pytest.raises(
        RunError, match=r"phase wide: out of memory .*allocate.* use less memory, .* with: \w+"
    ):
        run_plan(config, [AtStep(9, lambda _: torch.empty(2**46))])


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    limit_files(100)
    try:
        with pytest.raises(DiskError, match=r"config\.yaml"):
            run_plan(tiny_config(tmp_path / "run"))
    finally:
        limit_files(resource.RLIM_INFINITY)
    assert not list(tmp_path.iterdir())


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("step", "place"),
    [
        pytest.param(7, "resume/.000000007.partial", marks=pytest.mark.slow),
        (8, "checkpoints/.moe_model_final.partial"),
    ],
)
def test_disk_full(step, place, whole, tmp_path):
    """In the writing of a state, and of an artefact."""
    run_dir = tmp_path / "run"
    every = "checkpoint.every_steps=" + ("1" if step == 7 else "3")
    try:
        with pytest.raises(DiskError) as failed:
            run_plan(tiny_config(run_dir, every), [AtStep(step, lambda _: limit_files(50_000))])
    finally:
        limit_files(resource.RLIM_INFINITY)
    assert str(run_dir / place) in str(failed.value)
    assert "bytes were still to be written" in str(failed.value)
    assert failed.value.bytes_missing > 0
    assert not list(run_dir.glob("**/*.partial"))
    run_plan(tiny_config(run_dir, f"resume='{run_dir}'"))
    assert_same_run(whole, run_dir)


@pytest.mark.slow
def test_disk_full_as_a_process(tmp_path):
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "growlm.train", *TINY, "logger=none", f"run_dir={run_dir}"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: limit_files(50_000),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert str(run_dir / "resume") in done.stderr
    assert "Traceback" not in done.stderr
    assert f"resume={run_dir}" in done.stdout


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


STATE_FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "progress.safetensors",
    "state.json",
)


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "checkpoints/training_history.jsonl",
        "resume/run.json",
        *(f"resume/000000006/{name}" for name in STATE_FILES),
    ],
)
def test_a_damaged_file_of_a_stopped_run_is_named(name, damage, stopped, tmp_path):
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(run_dir / "resume" / "000000004")
    damage(run_dir / name)
    config = tiny_config(run_dir, f"resume='{run_dir}'", "checkpoint.save_optimizer=true")
    with pytest.raises(UserError) as refused:
        run_plan(config)
    assert str(run_dir / name) in str(refused.value)


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize(
    "name", ["config.json", "manifest.json", "model.safetensors", "optimizer.safetensors"]
)
def test_a_damaged_file_of_an_artefact_is_named(name, damage, stopped, tmp_path):
    folder = shutil.copytree(stopped / "checkpoints" / "dense_model", tmp_path / "model")
    damage(folder / name)
    read = read_optimizer_states if name.startswith("optimizer") else load_model
    with pytest.raises(UserError) as refused:
        read(folder)
    assert str(folder / name) in str(refused.value)


def test_behind_a_damaged_state_is_a_whole_one(stopped, whole, tmp_path, capsys):
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    flip(run_dir / "resume" / "000000006" / "model.safetensors")
    run_plan(tiny_config(run_dir, f"resume='{run_dir}'", "checkpoint.save_optimizer=true"))
    assert_same_run(whole, run_dir)
    assert f"{run_dir}/resume/000000006/model.safetensors: is damaged" in capsys.readouterr().out


def test_a_second_process_is_refused(stopped):
    with (
        open_run_folder(stopped),
        pytest.raises(UserError, match=f"another process .*{os.getpid()}"),
    ):
        open_run_folder(stopped)


def test_two_runs_of_the_same_second(stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, circumstances = tiny_config(tmp_path), open_run_folder(stopped)
    circumstances.lock.close()
    config.run_dir = None
    made = [create_run_folder(config, circumstances.fingerprint) for _ in range(2)]
    for folder in made:
        folder.lock.close()
    assert made[0].path != made[1].path


def test_of_runs_that_find_a_folder_empty_one_gets_it(stopped, tmp_path):
    config, circumstances = tiny_config(tmp_path), open_run_folder(stopped)
    circumstances.lock.close()
    empty = tmp_path / "empty"
    empty.mkdir()
    config.run_dir = str(empty)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create_run_folder, [config] * 8, [circumstances.fingerprint] * 8))
    for folder in made:
        folder.lock.close()
    assert {folder.path for folder in made} == {
        empty,
        *(tmp_path / f"empty_{suffix}" for suffix in range(2, 9)),
    }


def test_a_finished_run_is_refused(whole):
    with pytest.raises(UserError, match="has finished"):
        run_plan(tiny_config(whole, f"resume='{whole}'"))


def test_changed_settings_are_named(stopped):
    config = resolve_resume_config(
        tiny_config(stopped, f"resume='{stopped}'"), ["seed=7", "data.documents=90"]
    )
    with pytest.raises(UserError, match=r"seed=0 -> 7; data\.documents=200 -> 90"):
        run_plan(config)


def test_harmless_settings_may_change(stopped, whole, tmp_path):
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    overrides = ["checkpoint.every_steps=3", "trainer.activation_checkpointing=true"]
    config = resolve_resume_config(
        tiny_config(run_dir, f"resume='{run_dir}'"), [f"resume='{run_dir}'", *overrides]
    )
    assert config.checkpoint.every_steps == 3
    assert config.checkpoint.save_optimizer
    run_plan(config)
    assert_same_run(whole, run_dir)


def test_the_example_of_the_docs_resumes_in_python(stopped, whole, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "resume.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    run_dir = tmp_path / code.partition("resume=")[2].partition('"')[0]
    shutil.copytree(stopped, run_dir)
    monkeypatch.chdir(tmp_path)
    config = load_config(f"resume={run_dir}", "trainer.max_time=1:00:00:00", "phases.deep.lr=0.5")
    assert (config.model.d_model, config.trainer.max_time) == (16, "1:00:00:00")
    with pytest.raises(
        UserError, match=r"began with other settings \(phases\.deep\.lr=[^;]* -> 0\.5\)"
    ):
        run_plan(config)
    exec(compile(code, "resume.md", "exec"), {})
    assert_same_run(whole, run_dir)


def test_a_message_lists_a_few_changes(stopped):
    with pytest.raises(UserError, match=r"and \d+ more\); remove") as caught:
        run_plan(load_config(f"resume='{stopped}'", "model=small"))
    assert len(str(caught.value)) < 500


def test_the_newest_unfinished_run_with_these_settings(stopped, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    day = tmp_path / "outputs" / "2026-01-01"
    for name, source in (("a", stopped), ("b", stopped), ("c", whole)):
        shutil.copytree(source, day / name)
        os.utime(day / name / "resume" / "run.json", (1, {"a": 1, "b": 2, "c": 3}[name]))
    run = run_plan(tiny_config(tmp_path / "new", "resume=auto", "run_dir=null"))
    assert run.run_dir.resolve() == (day / "b").resolve()
    assert_same_run(whole, day / "b")


def test_without_an_unfinished_run_a_new_one_begins(tmp_path, capsys):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, "resume=auto"), [SignalAt(2)])
    assert "No unfinished run matches" in capsys.readouterr().out
    assert json.loads((run_dir / "plan.json").read_text())


def test_out_of_time(whole, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted) as stopped:
        run_plan(tiny_config(run_dir, "trainer.max_time=00:00:00:00"))
    assert stopped.value.code == 0
    assert [path.name for path in (run_dir / "resume").glob("0*")] == ["000000001"]
    run_plan(tiny_config(run_dir, f"resume='{run_dir}'"))
    assert_same_run(whole, run_dir)


@pytest.mark.parametrize("change", ["delete", "edit"])
def test_data_that_is_gone_or_changed(change, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Story {i} of a fox and a hen." * 3 for i in range(300)))
    run_dir = tmp_path / "run"
    settings = ("data=text", f"data.path='{text}'")
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, *settings), [SignalAt(2)])
    if change == "delete":
        text.unlink()
    else:
        text.write_text(text.read_text().replace("fox", "dog"))
    with pytest.raises(UserError, match=r"data\.path=.*(no such file|the text has changed)"):
        run_plan(tiny_config(run_dir, *settings, f"resume='{run_dir}'"))
