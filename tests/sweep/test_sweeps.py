"""Sweeps as real processes: killed and repeated, side by side, through every launcher."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.training.stopping import assert_same_run
from tests.training.tiny_run import TINY

NOISES = "growth.noise_std=1e-3,1e-2,2e-2"
DIALS = ("0_noise_std=0.001", "1_noise_std=0.01", "2_noise_std=0.02")


def start(folder, *arguments):
    command = [sys.executable, "-m", "growlm.train", "-m", *TINY, "logger=none", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return out + errors


def sweeps(folder):
    return sorted(folder.glob("outputs/*/*_sweep*"))


def jobs(sweep):
    return json.loads((sweep / "sweep.json").read_text())["jobs"]


def reused(sweep):
    """By job folder: the phases it did not train; None where it has not finished."""
    summaries = {
        path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/summary.json")
    }
    return {
        name: (summary["reused"] or {"phases": []})["phases"] for name, summary in summaries.items()
    }


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_sweep_is_repeated_and_only_the_rest_runs(tmp_path):
    process = start(tmp_path, NOISES)
    wait_for(lambda: list(tmp_path.rglob("1_*/checkpoints/medium_moe_final")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (sweep,) = sweeps(tmp_path)
    done = {path: path.stat().st_mtime_ns for path in sweep.glob("0_*/**/*") if path.is_file()}
    assert sweep / DIALS[0] / "summary.json" in done
    assert not (sweep / DIALS[2]).exists()

    out = finish(start(tmp_path, NOISES))
    assert sweeps(tmp_path) == [sweep]
    assert "1 of 3 jobs have finished" in out
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [(job["folder"], job["status"], job["code"]) for job in jobs(sweep)] == [
        (name, "finished", 0) for name in DIALS
    ]
    assert "Job 2 of 3  noise_std=0.01" in out
    assert "Resuming" in out  # the killed job, resumed
    assert reused(sweep)[DIALS[2]] == ["dense", "moe"]

    # All have finished: in a named folder nothing is left to do, without one it is a new sweep.
    out = finish(start(tmp_path, NOISES, f"hydra.sweep.dir={sweep}"))
    assert "3 of 3 jobs have finished" in out
    assert "Phase 1" not in out

    # Another command is another sweep.
    out = finish(start(tmp_path, "growth.noise_std=1e-3,1e-2", f"hydra.sweep.dir={sweep}"), code=2)
    assert "hydra.sweep.dir" in out
    assert "holds another sweep" in out


@pytest.mark.slow
def test_a_sweep_without_reuse_ends_the_same(tmp_path):
    finish(start(tmp_path, NOISES))
    finish(start(tmp_path, NOISES, "reuse.phases=never"))
    first, second = sweeps(tmp_path)
    assert [len(phases) for phases in reused(first).values()].count(2) == 2
    assert reused(second) == {name: [] for name in DIALS}
    for name in DIALS:
        assert_same_run(first / name, second / name)


@pytest.mark.slow
def test_two_sweeps_at_once_share_what_they_can(tmp_path):
    both = [start(tmp_path, "growth.noise_std=1e-3,1e-2") for _ in range(2)]
    for process in both:
        finish(process)
    assert len(sweeps(tmp_path)) == 2
    found = [phases for sweep in sweeps(tmp_path) for phases in reused(sweep).values()]
    assert len(found) == 4
    assert sum(not phases for phases in found) == 1  # one of four trained the shared prefix
    trained = sum(4 - len(phases) for phases in found)
    assert trained == 4 + 2 + 1 + 1  # with one noise everything but the last phase is shared
    one, other = sweeps(tmp_path)
    for name in ("0_noise_std=0.001", "1_noise_std=0.01"):
        assert_same_run(one / name, other / name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_that_run_jobs_side_by_side(tmp_path, launcher):
    # Noise-free copies are refused here: one job fails, in a process of its own.
    dials = ("growth.noise_std=0,1e-2", "growth.scale_factor=2")
    strict = "verification.require_symmetry_breaking=true"
    out = finish(start(tmp_path, f"hydra/launcher={launcher}", *dials, strict), code=1)
    (sweep,) = sweeps(tmp_path)
    failed, finished = jobs(sweep)
    assert (failed["status"], failed["code"]) == ("failed", 1)
    assert "symmetry" in failed["message"]
    assert (finished["status"], finished["code"]) == ("finished", 0)
    assert "Phase 1 of 4" not in out  # it is in the job's own log
    assert "Phase 4 of 4" in (sweep / f"{finished['folder']}.log").read_text()
    assert sorted(map(len, reused(sweep).values())) in ([0], [2])


@pytest.mark.slow
def test_a_killed_job_of_a_launcher_is_said_to_have_failed(tmp_path):
    process = start(tmp_path, "hydra/launcher=joblib", "phases.dense.steps=100000", "seed=1,2")
    wait_for(lambda: len(list(tmp_path.rglob("training_history.jsonl"))) == 2, process)
    (sweep,) = sweeps(tmp_path)
    owner = (sweep / "0_seed=1" / "resume" / "lock").read_text()
    os.kill(int(owner.split()[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "launcher failed" in errors
    assert {(job["status"], job["message"]) for job in jobs(sweep)} == {
        ("failed", "its process ended")
    }


def test_processes_of_torchrun_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    out = finish(start(tmp_path, "seed=1,2"), code=2)
    assert "-m=(WORLD_SIZE=2)" in out
    assert "torchrun --nproc-per-node 2 -m growlm.train" in out
    assert not list(tmp_path.iterdir())


def test_a_misspelt_value_of_a_later_job_is_found_before_the_first(tmp_path):
    out = finish(start(tmp_path, "optimizer=sgd,adamm"), code=2)
    assert "adamm" in out
    assert not list(tmp_path.iterdir())
