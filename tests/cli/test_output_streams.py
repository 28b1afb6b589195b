"""Standard output that is full, closed or no longer read: a line and an exit code, never a traceback."""

import os
import subprocess
import sys

import pytest

COMMANDS = (["report", "--help"], ["grow", "--cfg", "job"])
PROGRAM = ["--help"]


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
@pytest.mark.parametrize("arguments", [*COMMANDS, PROGRAM], ids=lambda arguments: arguments[0])
def test_a_closed_stream_is_no_error(arguments, redirection):
    shown = run(arguments, redirection)
    assert shown.returncode == 0
    assert "Traceback" not in shown.stderr


def test_an_output_that_nobody_reads_ends_the_command_quietly():
    shown = run(["report", "--help"], "| true")
    assert "Traceback" not in shown.stderr
    assert "roken pipe" not in shown.stderr
