"""The study's command, killed and gone on with; minutes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study_growth

from growlm.runtime.exit_codes import run_and_get_exit_code
from growlm.storage.locks import acquire_lock

SCRIPT = Path(__file__).parents[2] / "scripts" / "study_growth.py"
SMALL = ("--scale", "0.002", "--only", "depth x2", "data.documents=500")
SAME = ("arm", "seed", "source_rate", "rate", "share", "loss", "flops", "curve")


def command(out, *arguments):
    return [sys.executable, str(SCRIPT), "--out", str(out), "--work", f"{out}_work", *arguments]


def run(out, *arguments):
    return subprocess.run(command(out, *arguments), capture_output=True, text=True, timeout=900)


def lines(out):
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_one_run_that_fails_ends_no_other(tmp_path):
    """Its data is gone when it begins; what it says is printed, and the exit code is 1."""
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"Story {i}. Once upon a time there was a fox." * 9 for i in range(999))
    )
    out, data = tmp_path / "out", ("data=text", f"data.path={text}", "data.validation_every=2")
    small = ("--scale", "0.002", "--only", "depth x2", *data)
    process = subprocess.Popen(command(out, *small), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(lines(out)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    text.unlink()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "failed: depth x2/" in said
    assert str(text) in said


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_any_other(tmp_path):
    whole = run(tmp_path / "whole", *SMALL)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed, *SMALL), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(lines(killed)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = [int(pid) for pid in children_of(process.pid)]
    assert children
    process.kill()
    process.wait()
    while any(is_alive(pid) for pid in children):
        assert time.monotonic() < deadline, "processes stay behind"
        time.sleep(0.1)
    found = len(lines(killed))
    process = subprocess.Popen(command(killed, *SMALL), stdout=subprocess.DEVNULL)
    while len(lines(killed)) < found + 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    done = run(killed, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    one, other = (
        sorted([[r[name] for name in SAME] for r in lines(out)], key=str)
        for out in (tmp_path / "whole", killed)
    )
    assert one == other
    assert (killed / "changes.png").exists()
    again = run(killed, "--again", "depth x2/grown", *SMALL)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the same to the last bit" in again.stdout
    nothing = run(killed, *SMALL)
    assert nothing.returncode == 0
    assert len(lines(killed)) == len(other)


def refused(monkeypatch, capsys, out, *arguments):
    """What the command says, in this process: a new one takes seconds to start."""
    monkeypatch.setattr(sys, "argv", command(out, *arguments)[1:])
    assert run_and_get_exit_code(study_growth.main) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "hight"), "--only=hight: must be one of width x2, depth x2"),
        (
            ("--again", "depth x2/grown"),
            "--again=depth x2/grown: must be an arm with a finished run",
        ),
        (("trainer.precison=32-true", "--only", "depth x2"), "did you mean precision?"),
        (("seed=3",), "seed=3: is set by the study"),
        (("phases.source.lr=1",), "phases.source.lr=1: is set by the study"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, tmp_path / "out", *arguments)
    assert not lines(tmp_path / "out")


def test_another_studys_records_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs.jsonl").write_text('{"key": "a", "overrides": ["seed=3"], "scale": 0.5}\n')
    message = refused(monkeypatch, capsys, tmp_path, *SMALL)
    assert "has runs of another study: seed=3 --scale 0.5" in message


@pytest.mark.parametrize(
    ("arm", "share"), [("depth x2/grown", 1.0), ("depth x2/grown", 0.123), ("height x2/grown", 1.0)]
)
def test_records_of_other_settings_are_refused(tmp_path, monkeypatch, capsys, arm, share):
    """As they are when a file in conf/ has changed since."""
    record = {"key": "a", "arm": arm, "overrides": SMALL[4:], "scale": 0.002, "seed": 0}
    record |= {"source_rate": 8e-3, "rate": 8e-3, "share": share}
    (tmp_path / "runs.jsonl").write_text(json.dumps(record) + "\n")
    message = refused(monkeypatch, capsys, tmp_path, *SMALL)
    assert f"its run a ({arm}) does not match the present code and conf/" in message


def test_two_at_once_are_refused(tmp_path, monkeypatch, capsys):
    with acquire_lock(tmp_path / ".lock"):
        assert "another process is using it" in refused(monkeypatch, capsys, tmp_path, *SMALL)
