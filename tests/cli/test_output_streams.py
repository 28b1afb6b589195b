"""Standard output that is full, closed or no longer read: a line and an exit code, never a traceback."""

import os
import subprocess
import sys

import pytest

COMMANDS = (["report", "--help"], ["plan", "phase_plan=dense", "cluster=dgx_h100"])


def run(arguments, redirection):
    command = f'{sys.executable} -m growlm "$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_full_output_is_one_line(arguments):
    shown = run(arguments, ">/dev/full")
    assert shown.returncode == 1
    assert shown.stderr == "stopped: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("redirection", [">&-", "2>&-"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_closed_stream_is_no_error(arguments, redirection):
    shown = run(arguments, redirection)
    assert shown.returncode == 0
    assert "Traceback" not in shown.stderr


def test_nobody_who_reads_ends_it_as_a_signal_would():
    shown = run(
        ["plan", "phase_plan=dense", "cluster=dgx_h100", "devices=1,2,4"], "| true; sleep 0"
    )
    assert "Traceback" not in shown.stderr
    assert "Broken pipe" not in shown.stderr
