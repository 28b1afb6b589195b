"""Standard output that is full, closed or no longer read: a line and an exit code, never a traceback."""

import os
import subprocess
import sys

import pytest
import torch

from growlm.checkpoint import load_model, save_model
from tests.model.tiny_models import build, tiny_config

COMMANDS = (["report", "--help"], ["grow", "--cfg", "job"])
PROGRAM = ["--help"]


def run(arguments, redirection, shell="sh", **environment):
    command = f'{sys.executable} -m growlm "$@" {redirection}'
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [shell, "-c", command, shell, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", [*COMMANDS, PROGRAM], ids=lambda arguments: arguments[0])
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


@pytest.mark.parametrize("arguments", [["report", "--help"], PROGRAM, ["completion", "bash"]])
def test_an_output_that_nobody_reads_ends_the_command_quietly(arguments):
    """The reader has gone before the command writes."""
    shown = run(arguments, '| true; echo "${PIPESTATUS[0]}"', shell="bash")
    assert shown.stdout == "141\n"
    assert shown.stderr == ""


GROW = "grow=[{widen: {scale_factor: 2}}]"


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["", ">/dev/full", "| true", ">&- 2>&-"])
def test_a_grown_checkpoint_is_there_whatever_the_output(redirection, tmp_path):
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "small", {})
    arguments = ["grow", f"checkpoint={tmp_path / 'small'}", f"out={tmp_path / 'é'}", GROW]
    shown = run(arguments, redirection, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert "Traceback" not in shown.stderr
    assert load_model(tmp_path / "é")[0].config.d_model == 32
    if redirection == ">/dev/full":
        assert shown.stderr.startswith("warning: standard output cannot be written (No space left")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "trainer.memory_gb=100"],
        ["train", "--help"],
        *([name, "--help"] for name in ("plan", "verify", "convert", "generate", "evaluate")),
        ["verify"],
    ],
    ids=" ".join,
)
def test_every_command_prints_to_a_narrow_terminal_and_to_nobody(arguments):
    narrow = run(arguments, "", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0, narrow.stderr
    assert "Traceback" not in narrow.stderr
    lost = run(arguments, '| head -c 1 >/dev/null; echo "${PIPESTATUS[0]}"', shell="bash")
    assert lost.stdout in ("141\n", "0\n")  # 0: it was written at once
    assert "Traceback" not in lost.stderr
    assert "xception" not in lost.stderr
