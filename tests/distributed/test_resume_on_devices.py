"""A run on several processes, killed or stopped, goes on: with as many of them, with fewer, with more."""

import shutil
import signal
from pathlib import Path

import pytest

from growlm.training import Interrupted, run_plan
from tests.distributed.on_devices import history, largest_difference, outcome, run_all, start
from tests.training.stopping import SignalAt
from tests.training.tiny_run import tiny_config

KILLED = Path(__file__).with_name("killed_on_devices.py")
SETTINGS = (
    "callbacks.log_every=1",
    "trainer.validation_sequences=6",
    "trainer.precision=64-true",
    "checkpoint.every_steps=3",
)
STRATEGIES = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, on one process."""
    return run_plan(tiny_config(tmp_path_factory.mktemp("whole") / "run", *SETTINGS)).run_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs on two processes that were killed after a step, each made once; a fresh copy of its folder."""
    made = {}

    def run(strategy, step, ranks, to):
        key = strategy, step, ranks
        if key not in made:
            made[key] = tmp_path_factory.mktemp("killed") / "run"
            settings = [*SETTINGS, f"trainer.strategy={strategy}"]
            made[key, "ended"] = outcome(
                start([str(KILLED), str(step), ranks, str(made[key]), *settings])
            )
        return shutil.copytree(made[key], to), made[key, "ended"]

    return run


def resume(run_dir, processes, *settings):
    if processes == 1:
        run_plan(tiny_config(run_dir, *SETTINGS, f"resume='{run_dir}'", *settings))
    else:
        run_all([[str(run_dir), *SETTINGS, f"resume='{run_dir}'", *settings]], processes)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_one_process_killed_and_resumed(processes, strategy, whole, killed, tmp_path):
    """In the middle of the third phase, whose last state is from a step before."""
    run_dir, ended = killed(strategy, 10, "1", tmp_path / "run")
    assert [code for code, *_ in ended] == [1, -signal.SIGKILL]
    assert "stopped: another process of this run has ended" in ended[0][2]
    assert "Traceback" not in ended[0][2]
    assert newest(run_dir) == "000000009"
    resume(run_dir, processes)
    assert largest_difference(whole, run_dir) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("step", [4, 5])
def test_all_killed_and_resumed(step, processes, strategy, whole, killed, tmp_path):
    """With a phase's last step, whose state is not written then; and after the state of that phase."""
    run_dir, ended = killed(strategy, step, "0,1", tmp_path / "run")
    assert [code for code, *_ in ended] == [-signal.SIGKILL] * 2
    assert newest(run_dir) == {4: "000000003", 5: "000000004"}[step]
    resume(run_dir, processes)
    assert largest_difference(whole, run_dir) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_the_strategy_may_change(before, after, whole, killed, tmp_path):
    run_dir, _ = killed(before, 10, "1", tmp_path / "run")
    parts = list((run_dir / "resume" / "000000009").glob("model-part-*"))
    assert len(parts) == {"ddp": 0, "fsdp": 2}[before]
    resume(run_dir, 2, f"trainer.strategy={after}")
    assert largest_difference(whole, run_dir) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_one_process_began_two_finish(strategy, whole, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, *SETTINGS), [SignalAt(6)])
    resume(run_dir, 2, f"trainer.strategy={strategy}")
    assert largest_difference(whole, run_dir) < 1e-7
    assert history(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streamed_documents_go_on_where_they_were(strategy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Document {i} says {i * i} and then {i**3}." for i in range(3000)))
    streamed = ["data=text", f"data.path={text}", "data.streaming=true", "data.shuffle_window=100"]
    settings = [*SETTINGS, *streamed, "data.validation_every=30", f"trainer.strategy={strategy}"]
    run_all([[str(tmp_path / "whole"), *settings]])
    ended = outcome(start([str(KILLED), "10", "0,1", str(tmp_path / "run"), *settings]))
    assert [code for code, *_ in ended] == [-signal.SIGKILL] * 2
    resumed = [str(tmp_path / "run"), *settings, f"resume='{tmp_path / 'run'}'"]
    run_all([resumed])
    assert largest_difference(tmp_path / "whole", tmp_path / "run") == 0.0


def newest(run_dir):
    return max(path.name for path in (run_dir / "resume").glob("0*"))
