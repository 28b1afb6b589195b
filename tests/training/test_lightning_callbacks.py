"""Every callback that Lightning exports does in a plan what its documentation says, or is refused by name."""

import csv
import inspect
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch.callbacks as exported
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from growlm.runtime.errors import UserError
from growlm.training import Interrupted, run_plan
from growlm.training.callbacks.resume_callback import SaveStateCallback
from tests.training.callbacks_table import CASES, render_table
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import rows, tiny_config

TWO_PHASES = ("~phases.moe", "~phases.wide", "trainer.validate_every=2", "logger=csv")
STOP = 6
"""In the middle of the second phase."""
WORKS = {name: case for name, case in CASES.items() if case.refused is None}


def two_phases(run_dir, *overrides):
    return tiny_config(run_dir, *TWO_PHASES, *overrides)


def final_weights(run_dir):
    return load_file(run_dir / "checkpoints" / "large_moe_final" / "model.safetensors")


def logged_columns(run_dir):
    return {
        column
        for file in run_dir.glob("csv*/metrics.csv")
        for column in next(csv.reader(file.read_text().splitlines()))
    }


def test_the_table_names_every_class():
    classes = {
        name
        for name in exported.__all__
        if not inspect.isabstract(getattr(exported, name))
        and name
        not in ("Callback", "Checkpoint", "BaseFinetuning", "BasePredictionWriter", "ProgressBar")
    }
    assert CASES.keys() == classes


def test_the_docs_have_the_table():
    page = (Path(__file__).parents[2] / "docs" / "own_classes.md").read_text()
    assert render_table() in page, "write what render_table() returns into docs/own_classes.md"


TOGETHER = [
    "DeviceStatsMonitor EarlyStopping LambdaCallback LearningRateMonitor ModelCheckpoint ModelSummary "
    "RichProgressBar ThroughputMonitor Timer",
    "EMAWeightAveraging RichModelSummary TQDMProgressBar",
    "WeightAveraging",
]
"""All that work, in as few runs as they allow."""


def test_all_that_work_are_tried():
    assert sorted(" ".join(TOGETHER).split()) == sorted(WORKS)


@pytest.fixture
def lightning_log(caplog):
    """What Lightning logs: whether its logger propagates depends on when it was imported."""
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("names", [*TOGETHER, *slow(*WORKS)])
def test_it_works_through_a_boundary_and_a_resume(names, tmp_path, capfd, lightning_log):
    cases = [WORKS[name] for name in names.split()]

    def make(run_dir):
        return [callback for case in cases for callback in case.make(run_dir)]

    def check(run_dir, run):
        output = capfd.readouterr()
        for case in cases:
            text = output.out + output.err + lightning_log.text
            case.check(run_dir, run, text, logged_columns(run_dir))
        lightning_log.clear()

    whole, stopped = tmp_path / "whole", tmp_path / "run"
    check(whole, run_plan(two_phases(whole), make(whole)))
    with pytest.raises(Interrupted):
        run_plan(two_phases(stopped), [*make(stopped), SignalAt(STOP)])
    config = two_phases(stopped, f"resume='{stopped}'")
    check(stopped, run_plan(config, [*make(stopped), SignalAt(10**6)]))
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("name", sorted(CASES.keys() - WORKS.keys()))
def test_it_is_refused_before_anything_is_written(name, tmp_path):
    case = CASES[name]
    with pytest.raises(UserError, match=re.escape(f"callbacks[0]={name}: {case.refused}")):
        run_plan(two_phases(tmp_path / "run"), case.make(tmp_path))
    assert not (tmp_path / "run").exists()


def test_one_that_logs_needs_a_logger(tmp_path):
    config = two_phases(
        tmp_path / "run",
        "logger=none",
        "+callbacks.extra.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor",
    )
    with pytest.raises(UserError, match=r"callbacks.extra.rates=LearningRateMonitor: .*logger=csv"):
        run_plan(config)
    assert not (tmp_path / "run").exists()


class AverageByHand(Callback):
    """The running mean that EMAWeightAveraging should arrive at."""

    def __init__(self, decay):
        self.decay, self.mean = decay, None

    def on_train_start(self, trainer, pl_module):
        self.mean = {n: p.detach().clone() for n, p in pl_module.model.named_parameters()}
        self.updated = False

    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, p in pl_module.model.named_parameters():
            if self.updated:
                self.mean[name].lerp_(p.detach(), 1 - self.decay)
            else:
                self.mean[name].copy_(p.detach())
        self.updated = True


def test_averaged_weights_are_saved_and_handed_on(tmp_path):
    by_hand = AverageByHand(0.5)
    average = exported.EMAWeightAveraging(decay=0.5)
    run_plan(two_phases(tmp_path / "run"), [by_hand, average])
    saved = final_weights(tmp_path / "run")
    for name, mean in by_hand.mean.items():
        assert torch.allclose(saved[name], mean, atol=1e-6), name
    boundary = json.loads((tmp_path / "run" / "boundaries.json").read_text())[0]
    assert boundary["passed"]
    dense = load_file(tmp_path / "run" / "checkpoints" / "dense_model" / "model.safetensors")
    run_plan(two_phases(tmp_path / "plain"))
    plain = load_file(tmp_path / "plain" / "checkpoints" / "dense_model" / "model.safetensors")
    assert not torch.equal(dense["embedding.weight"], plain["embedding.weight"])


def test_early_stopping_ends_each_phase_and_a_resume_goes_on_behind_it(tmp_path):
    def stop():
        return exported.EarlyStopping("val/loss", patience=1, mode="max")

    settings = ("trainer.validate_every=1", "phases.dense.steps=6", "phases.deep.steps=6")
    whole = run_plan(two_phases(tmp_path / "whole", *settings), [stop()])
    dense, deep = whole.summary.phases
    assert (dense.steps, dense.tokens) == (2, 2 * 128)
    assert "val/loss" in dense.ended_early
    assert deep.steps < 6
    config = two_phases(tmp_path / "run", *settings)
    with pytest.raises(Interrupted):
        run_plan(config, [stop(), SignalAt(7)])
    config = two_phases(tmp_path / "run", *settings, f"resume='{tmp_path / 'run'}'")
    resumed = run_plan(config, [stop(), SignalAt(10**6)])
    assert resumed.summary.phases[0].steps == 2


def test_a_timer_writes_a_state_and_stops_like_max_time(tmp_path):
    config = two_phases(tmp_path / "run", "phases.deep.steps=2000")
    with pytest.raises(Interrupted, match="stopped by Timer after step") as stopped:
        run_plan(config, [exported.Timer("00:00:00:02")])
    assert stopped.value.code == 0
    record = next((tmp_path / "run" / "resume").glob("0*/state.json"))
    assert json.loads(record.read_text())["step"] > 0


class Counter(Callback):
    """Counts the steps of the whole run."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]


@pytest.mark.parametrize("stop", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_an_object_of_ones_own_lives_through_boundaries_and_resumes(tmp_path, stop):
    with pytest.raises(Interrupted):
        run_plan(two_phases(tmp_path / "run"), [Counter(), SignalAt(stop)])
    config = two_phases(tmp_path / "run", f"resume='{tmp_path / 'run'}'")
    counter = Counter()
    with pytest.raises(UserError, match="callbacks that were given to run_plan in Python"):
        run_plan(config)
    run_plan(config, [counter, SignalAt(10**6)])
    assert counter.steps == 8


class StopAt(Callback):
    """Ends a phase in the middle of a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or batch_idx == 4


def test_a_phase_may_end_inside_a_step(tmp_path):
    settings = ("phases.dense.accumulate=2", "checkpoint.every_steps=2", "trainer.validate_every=0")
    run = run_plan(two_phases(tmp_path / "run", *settings), [StopAt()])
    assert [phase.steps for phase in run.summary.phases] == [2, 4]
    assert run.summary.phases[0].ended_early == "a callback set trainer.should_stop"


def test_ranks_stop_together_when_the_timer_of_one_is_over():
    """Lightning stops all by the clock of rank 0; the others must write the state with it."""
    callback = SaveStateCallback.__new__(SaveStateCallback)
    callback.stop_requests = SimpleNamespace(requested_exit_code=None)
    callback.settings = SimpleNamespace(every_steps=0, every_minutes=0)
    callback.dist_context = SimpleNamespace(all_reduce_max=lambda local: [0, local[1], 1])
    assert callback._agree_across_ranks(3, False) == (0, False, True)


class Losses(Callback):
    """Keeps what `trainer.callback_metrics` has after each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *_):
        self.found.append(float(trainer.callback_metrics["train/loss"]))


def test_the_losses_of_logged_steps_are_in_callback_metrics(tmp_path):
    each, some = Losses(), Losses()
    monitor = exported.ModelCheckpoint(monitor="train/loss", every_n_train_steps=1)
    run_plan(two_phases(tmp_path / "each"), [each, monitor])
    run_plan(two_phases(tmp_path / "some"), [some])
    logged = [row["loss"] for row in rows(tmp_path / "some") if row["phase"] == "dense"]
    assert each.found[:4] == pytest.approx(logged)  # all of them, so near a growth
    # callbacks.log_every=2
    assert some.found[:4] == pytest.approx([each.found[i] for i in (0, 1, 1, 3)])
