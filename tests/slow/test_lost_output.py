"""Runs whose output, or whose terminal, goes away while they train, as real processes.

python -m pytest -n 0 -s -m slow tests/slow/test_lost_output.py        (about 5 minutes)
"""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.training.tiny_run import TINY, TINY_MODEL, TINY_PLAN

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
TRAIN = [sys.executable, "-m", "growlm.train"]
UNUSED = ("growth.extra_layers", "phases.moe", "phases.wide", "phases.deep", "phases.dense.steps")
LONG = [
    *(setting for setting in (*TINY_MODEL, *TINY_PLAN) if not setting.startswith(UNUSED)),
    "phase_plan=dense",
    "phases.dense.steps=100000",
    "logger=none",
]
"""A run that does not end by itself."""
STRATEGIES = ([], ["trainer.devices=2"], ["trainer.devices=2", "trainer=fsdp"])
IDS = ("alone", "ddp", "fsdp")


def lines_of_history(run_dir):
    path = run_dir / "checkpoints" / "training_history.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_steps(run_dir, process, number=5):
    while len(lines_of_history(run_dir)) < number:
        assert process.poll() is None
        time.sleep(0.02)


def start_piped(command, folder):
    """A process whose standard output is a pipe, and the file with its standard error."""
    path = folder / "err"
    with path.open("w") as err:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=err)
    return process, path


def states(run_dir):
    return [path for path in (run_dir / "resume").glob("0*") if (path / "manifest.json").exists()]


def resume(run_dir, seconds="3"):
    """Goes on for a few seconds from the state."""
    again = [*TRAIN, f"resume={run_dir}", f"trainer.max_time=00:00:00:{seconds}"]
    done = subprocess.run(again, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Resuming dense after step" in done.stdout


@pytest.mark.parametrize("settings", STRATEGIES, ids=IDS)
def test_a_reader_that_has_gone_and_then_ctrl_c(settings, tmp_path):
    """`growlm train | tee log` and Ctrl-C, which ends `tee` first."""
    run_dir = tmp_path / "run"
    process, err_path = start_piped([*TRAIN, *LONG, *settings, f"run_dir={run_dir}"], tmp_path)
    wait_for_steps(run_dir, process)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    code, err = process.wait(120), err_path.read_text()
    assert code == 130, err
    assert "stopped by SIGINT after step" in err
    assert "Traceback" not in err
    assert f"To resume: python -m growlm.train resume={run_dir}" in err
    assert states(run_dir)
    resume(run_dir)


def start_on_terminal(command, before=lambda: None):
    """A process in a session of its own, whose terminal is the other end of what is returned."""
    master, slave = pty.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        before()

    process = subprocess.Popen(
        command,
        env=ENVIRONMENT | {"TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    os.set_blocking(master, False)
    return process, master


def read_terminal(master):
    try:
        return os.read(master, 1 << 16)
    except OSError:
        return b""


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize("settings", STRATEGIES, ids=IDS)
def test_a_terminal_that_is_closed(settings, tmp_path):
    run_dir = tmp_path / "run"
    process, master = start_on_terminal([*TRAIN, *LONG, *settings, f"run_dir={run_dir}"])
    while len(lines_of_history(run_dir)) < 5:
        read_terminal(master)
        assert process.poll() is None
        time.sleep(0.02)
    os.close(master)
    assert process.wait(120) == 129
    assert states(run_dir)
    resume(run_dir)


@pytest.mark.parametrize("settings", STRATEGIES[:2], ids=IDS[:2])
def test_a_terminal_that_is_closed_under_nohup(settings, tmp_path):
    run_dir = tmp_path / "run"
    process, master = start_on_terminal(
        [*TRAIN, *TINY, "logger=none", *settings, f"run_dir={run_dir}"], ignore_hangup
    )
    while not lines_of_history(run_dir):
        read_terminal(master)
        assert process.poll() is None
        time.sleep(0.02)
    os.close(master)
    assert process.wait(200) == 0
    assert (run_dir / "summary.json").exists()


@pytest.mark.parametrize("settings", STRATEGIES[:2], ids=IDS[:2])
def test_ctrl_c_on_a_terminal(settings, tmp_path):
    """The terminal sends it to all of its foreground processes."""
    run_dir = tmp_path / "run"
    process, master = start_on_terminal([*TRAIN, *LONG, *settings, f"run_dir={run_dir}"])
    while len(lines_of_history(run_dir)) < 5:
        read_terminal(master)
        assert process.poll() is None
        time.sleep(0.02)
    os.write(master, b"\x03")
    shown = b""
    while process.poll() is None:
        shown += read_terminal(master)
        time.sleep(0.02)
    shown += read_terminal(master)
    os.close(master)
    assert process.returncode == 130
    assert b"To resume: " in shown
    assert b"Traceback" not in shown
    assert states(run_dir)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_while_the_state_is_written(second, tmp_path):
    run_dir = tmp_path / "run"
    process, err_path = start_piped(
        [*TRAIN, *LONG, "checkpoint.every_steps=1", f"run_dir={run_dir}"], tmp_path
    )
    wait_for_steps(run_dir, process)
    process.stdout.close()
    while not list((run_dir / "resume").glob(".0*.partial")):
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    time.sleep(0.005)
    process.send_signal(second)
    code, err = process.wait(60), err_path.read_text()
    assert code in (129, 128 + second), err
    assert "Traceback" not in err
    assert not list(run_dir.glob("**/*.partial"))
    resume(run_dir)


REDIRECTIONS = {
    "head": "2>err | head -1",
    "full": "2>err >/dev/full",
    "both full": ">/dev/full 2>&1",
    "error full": "2>/dev/full >out",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "both to nobody": "2>&1 | true",
}


@pytest.mark.parametrize("redirection", REDIRECTIONS.values(), ids=REDIRECTIONS)
@pytest.mark.parametrize("logger", ["none", "wandb"])
def test_a_run_ends_as_without(logger, redirection, tmp_path):
    run_dir = tmp_path / "run"
    wandb = ["logger=wandb", "logger.mode=offline"] if logger == "wandb" else ["logger=none"]
    script = f'set -o pipefail; {sys.executable} -m growlm.train "$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *TINY, *wandb, f"run_dir={run_dir}"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = (tmp_path / "err").read_text() if (tmp_path / "err").exists() else done.stderr
    assert done.returncode == 0, told
    assert "Traceback" not in told
    assert json.loads((run_dir / "summary.json").read_text())["phases"]
    if (
        "err" in redirection.split("|")[0]
        and "full 2" not in redirection
        and ">out" not in redirection
    ):
        assert told.count("warning: standard output cannot be written") == 1
    if logger == "wandb":
        assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_narrow_terminal(encoding, tmp_path):
    run_dir = tmp_path / "été"
    done = subprocess.run(
        [*TRAIN, *TINY, "logger=none", f"run_dir={run_dir}"],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=300,
    )
    told = done.stderr.decode(encoding)
    assert done.returncode == 0, told
    assert "dense -> moe" in done.stdout.decode(encoding)
