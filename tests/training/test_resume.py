"""A run that was stopped goes on as if nothing had happened."""

import signal

import pytest
from stopping import SignalAt, assert_same_run
from tiny_run import tiny_config

from growlm.training import Interrupted, run_plan

STEPS = 4
"""Of each of the four phases."""


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


def slow(*values):
    """Run with `-m slow` only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("step", [7, 8, 9, *slow(1, 3, 4, 5, 11, 12, 13, 15)])
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
            "model.router_bias_step=0.01",
        ),
        *slow(
            ("phases.moe.optimizer_state=reset", "phases.wide.optimizer_state=reset"),
            ("phases.wide.optimizer_state=asymmetric", "phases.deep.optimizer_state=asymmetric"),
            ("phases.moe.accumulate=3", "phases.moe.batch_size=2"),
            ("trainer.precision=bf16-mixed",),
            ("trainer.precision=32-true",),
            ("model.router_bias_step=0.01", "model.router_balance_weight=0"),
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
