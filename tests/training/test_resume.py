"""A run that was stopped goes on as if nothing had happened."""

import os
import shutil
import signal

import pytest

from growlm.training import Interrupted, run_plan
from tests.commands.wandb_file import wandb_file, wandb_history, wandb_rows, wandb_table
from tests.reporting.wandb_server import sync
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import tiny_config


def stopped_and_resumed(run_dir, overrides, *stops, number=signal.SIGTERM):
    """Run into every stop in turn, then to the end."""
    for step in stops:
        resume = [f"resume='{run_dir}'"] if run_dir.exists() else []
        with pytest.raises(Interrupted) as stopped:
            run_plan(tiny_config(run_dir, *overrides, *resume), [SignalAt(step, number)])
        assert stopped.value.code == 128 + number
    return run_plan(tiny_config(run_dir, *overrides, f"resume='{run_dir}'"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of some settings, made once."""
    made = {}

    def run(*overrides):
        if overrides not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            made[overrides] = run_plan(tiny_config(folder, *overrides)).run_dir
        return made[overrides]

    return run


@pytest.mark.parametrize("step", [8, *slow(1, 3, 4, 5, 7, 9, 11, 12, 13, 15)])
def test_one_step_before_at_and_after_every_boundary(step, whole, tmp_path):
    resumed = stopped_and_resumed(tmp_path / "run", (), step)
    assert_same_run(whole(), resumed.run_dir)


@pytest.mark.slow
def test_a_resume_of_a_resume(whole, tmp_path):
    resumed = stopped_and_resumed(tmp_path / "run", (), 2, 3, 6, 8, 14)
    assert_same_run(whole(), resumed.run_dir)


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "phases.moe.optimizer_state=exact",
            "phases.wide.optimizer_state=exact",
            "phases.wide.accumulate=3",
            "trainer.precision=bf16-mixed",
            "model.routing.bias_step=0.01",
        ),
        *slow(
            ("phases.moe.optimizer_state=reset", "phases.wide.optimizer_state=reset"),
            ("phases.wide.optimizer_state=asymmetric", "phases.deep.optimizer_state=asymmetric"),
            ("phases.moe.accumulate=3", "phases.moe.batch_size=2"),
            ("trainer.precision=bf16-mixed",),
            ("trainer.precision=32-true",),
            ("model.routing.bias_step=0.01", "model.routing.balance_weight=0"),
            ("optimizer=sgd",),
            ("optimizer=muon", "phases.wide.optimizer_state=asymmetric"),
            ("optimizer=adafactor",),
            ("schedule=cosine", "trainer.validate_every=2"),
        ),
    ],
    ids=" ".join,
)
def test_with_every_kind_of_state(overrides, whole, tmp_path):
    resumed = stopped_and_resumed(tmp_path / "run", overrides, 6, 8, 10)
    assert_same_run(whole(*overrides), resumed.run_dir)


def test_a_second_interrupt_leaves_at_once(tmp_path):
    class Twice(SignalAt):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            super().on_train_batch_end(*arguments)

    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted) as stopped:
        run_plan(tiny_config(run_dir), [Twice(6, signal.SIGINT)])
    assert stopped.value.code == 130
    assert [path.name for path in (run_dir / "resume").glob("0*")] == ["000000004"]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(6, 1), (8, 1), (8, 0.8), (8, 0.5), (8, 0)])
def test_the_wandb_run_goes_on(step, kept, tmp_path):
    """Of the first part's file, W&B may have written a share only when the run was killed."""
    run_dir = tmp_path / "run"
    settings = ("logger=wandb", "logger.mode=offline")
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, *settings), [SignalAt(step)])
    first = wandb_file(run_dir)
    os.truncate(first, max(7, int(kept * first.stat().st_size)))
    run_plan(tiny_config(run_dir, *settings, f"resume='{run_dir}'"))
    whole = run_plan(tiny_config(tmp_path / "whole", *settings)).run_dir
    files = sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one id, two folders
    assert len(files) == (2 if kept else 1)
    whole_file = wandb_file(whole)
    parts = [row for file in files for row in losses(file)]
    assert parts == losses(whole_file)
    received = sync(*(file.parent for file in files))  # what docs/resume.md says: it joins them
    assert [row["_step"] for row in received.history] == list(range(len(parts)))
    assert {run["name"] for run in received.runs} == {files[0].stem.removeprefix("run-")}


def test_a_run_goes_on_with_another_logger(tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, "logger=csv"), [SignalAt(10)])
    settings = ("logger=wandb", "logger.mode=offline", f"resume='{run_dir}'")
    run_plan(tiny_config(run_dir, *settings))
    file = wandb_file(run_dir)
    found = losses(file)
    assert [row[0] for row in found] == list(range(len(found))), (
        "what was before the stop is there, too"
    )
    steps = [int(row[1]) for row in found]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 16)
    *_, grown = [row for row in wandb_rows(file) if "growth/boundaries.path" in row]
    _, table = wandb_table(file, grown, "growth/boundaries")
    assert [line[:2] for line in table] == [["dense", "moe"], ["moe", "wide"], ["wide", "deep"]]


def losses(file):
    return [
        (step, row["trainer/global_step"], row.get("train/loss"), row.get("growth/jump"))
        for step, row in wandb_history(file)
        if "trainer/global_step" in row
    ]


def test_tensorboard_hides_what_was_written_after_the_state(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, "logger=tensorboard", "callbacks.log_every=1"), [SignalAt(6)])
    shutil.rmtree(run_dir / "resume" / "000000006")  # as if killed before it was written
    resume = f"resume='{run_dir}'"
    run_plan(tiny_config(run_dir, "logger=tensorboard", "callbacks.log_every=1", resume))
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in events] == list(range(1, 17))


def test_a_scheduler_queues_the_job_again_once_the_state_is_written(whole, tmp_path):
    seen = []
    states = tmp_path / "run" / "resume"

    def queue_again(number, frame):  # as submitit's, which then ends the process
        seen.append(sorted(path.name for path in states.glob("0*")))
        raise SystemExit(255)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(SystemExit):
            run_plan(tiny_config(tmp_path / "run"), [SignalAt(6, signal.SIGUSR2)])
        assert signal.getsignal(signal.SIGUSR2) is queue_again
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(seen) == 1
    assert seen[0][-1] == "000000006"
    resumed = run_plan(tiny_config(tmp_path / "run", f"resume='{tmp_path / 'run'}'"))
    assert_same_run(whole(), resumed.run_dir)
