"""`python -m growlm.train trainer.devices=2`: the command starts its processes itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.distributed.on_devices import history
from tests.training.tiny_run import TINY

TRAIN = [sys.executable, "-m", "growlm.train", *TINY, "logger=none", "trainer.devices=2"]


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_nothing_is_left(tmp_path):
    wrong = [f"data.path={tmp_path}/nothing", "data=text", f"run_dir={tmp_path}/run"]
    done = subprocess.run([*TRAIN, *wrong], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: data.path={tmp_path}/nothing: no such file; must be a text file, a folder or a glob"
    ]
    assert list(tmp_path.iterdir()) == []


def is_training(row):
    return row.get("phase") == "moe" and "loss" in row


@pytest.mark.slow
def test_a_signal_stops_all_and_the_run_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    command = [*TRAIN, "phases.moe.steps=400", f"run_dir={run_dir}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    path = run_dir / "checkpoints" / "training_history.jsonl"
    while not (path.exists() and any(is_training(row) for row in history(run_dir))):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.count("\n") == 1
    assert err.startswith("stopped by SIGTERM after step")
    assert "To resume: python -m growlm.train resume=" in out
    again = [sys.executable, "-m", "growlm.train", f"resume={run_dir}"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in history(run_dir) if is_training(row)]
    assert steps == [1, *range(2, 401, 2)]
