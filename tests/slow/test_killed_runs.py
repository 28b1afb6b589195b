"""Runs that are killed at any instant, as real processes, and go on as if nothing had happened.

    python -m pytest -n 0 -s -m slow tests/slow/test_killed_runs.py        (about 15 minutes)

Some kills fall inside the writing of a state, some inside a growth, some at a boundary, the others anywhere.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.training.stopping import assert_same_run
from tests.training.tiny_run import TINY

pytestmark = pytest.mark.slow
SETTINGS = (*TINY, "logger=none", "checkpoint.every_steps=2", "optimizer=adamw")
KINDS = ["write"] * 9 + ["growth"] * 7 + ["boundary"] * 6 + ["anywhere"] * 10


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "growlm",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NODELIST": "localhost",
}


def start(*overrides, environment=()):
    return subprocess.Popen(
        [sys.executable, "-m", "growlm.train", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment),
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(*SETTINGS, f"run_dir={run_dir}"))
    rows = [json.loads(line) for line in history_path(run_dir).read_text().splitlines()]
    return run_dir, max(row.get("time_s", 0.0) for row in rows)


def history_path(run_dir):
    return run_dir / "checkpoints" / "training_history.jsonl"


def events(run_dir, name):
    try:
        return history_path(run_dir).read_text().count(f'"event": "{name}"')
    except OSError:
        return 0


def partial_states(run_dir):
    return sorted(path.name for path in (run_dir / "resume").glob(".0*.partial"))


def wait_for(condition, process):
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def wait_for_instant(kind, draw, run_dir, process, seconds):
    """Wait for an instant of this kind."""
    number = draw.randrange(1, 4)
    if kind == "write":
        seen = set()

        def in_another_write():
            seen.update(partial_states(run_dir))
            return len(seen) >= 2 * number and bool(partial_states(run_dir))

        wait_for(in_another_write, process)
    elif kind == "growth":
        wait_for(lambda: events(run_dir, "phase_finished") >= number, process)
        wait_for(lambda: not partial_states(run_dir), process)
        time.sleep(draw.uniform(0.05, 0.15))
    elif kind == "boundary":
        wait_for(lambda: events(run_dir, "boundary") >= number, process)
    else:
        wait_for((run_dir / "resume" / "run.json").exists, process)
        time.sleep(draw.uniform(0.0, seconds))


def killed_in(run_dir):
    """What a run was doing when it was killed, from what it left."""
    if partial_states(run_dir):
        return "write"
    path = history_path(run_dir)
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return "beginning"
    last = json.loads(lines[-1])
    kinds = {"phase_finished": "growth", "boundary": "boundary", "phase_started": "boundary"}
    return kinds.get(last.get("event"), "training")


hits = Counter()


@pytest.mark.parametrize(("index", "kind"), list(enumerate(KINDS)), ids=str)
def test_killed_and_resumed(index, kind, whole, tmp_path):
    run_dir = tmp_path / "run"
    process = start(*SETTINGS, f"run_dir={run_dir}")
    wait_for_instant(kind, random.Random(index), run_dir, process, whole[1])
    alive = process.poll() is None
    process.kill()
    process.communicate()
    assert alive, "the run had ended before it was killed"
    hits[killed_in(run_dir)] += 1
    finish(start(f"resume={run_dir}"))
    assert_same_run(whole[0], run_dir)
    assert not list(run_dir.glob("**/*.partial"))


def test_kills_fell_where_they_should():
    """Of those above, which must have run."""
    assert hits.total() == len(KINDS)
    print(dict(hits))
    assert hits["write"] >= 3
    assert hits["growth"] >= 3
    assert hits["boundary"] >= 2


@pytest.mark.parametrize("index", range(5))
def test_terminated_and_resumed(index, whole, tmp_path):
    """The last as a SLURM job, for which Lightning would have a way of its own.

    Not in the last phase, whose end may come before the signal.
    """
    run_dir = tmp_path / "run"
    environment = SLURM if index == 4 else {}
    process = start(*SETTINGS, f"run_dir={run_dir}", "resume=auto", environment=environment)
    wait_for((run_dir / "resume" / "run.json").exists, process)
    time.sleep(random.Random(index).uniform(0.0, 0.6 * whole[1]))
    process.send_signal(signal.SIGTERM)
    assert f"To resume: python -m growlm.train resume={run_dir}" in finish(process, 143)
    finish(start(*SETTINGS, f"run_dir={run_dir}", "resume=auto", environment=environment))
    assert_same_run(whole[0], run_dir)


def test_killed_again_and_again(whole, tmp_path):
    run_dir = tmp_path / "run"
    draw = random.Random(7)
    for attempt in itertools.count():
        resume = [f"resume={run_dir}"] if (run_dir / "resume" / "run.json").exists() else []
        process = start(*(resume or (*SETTINGS, f"run_dir={run_dir}")))
        if attempt == 5:
            finish(process)
            break
        wait_for((run_dir / "resume" / "lock").exists, process)
        time.sleep(draw.uniform(0.5, 0.7) * whole[1] + 3 * bool(resume))
        process.kill()
        process.communicate()
    assert_same_run(whole[0], run_dir)
