"""`growlm COMMAND`: subcommands, version, composed configs and tab completion, as a shell sees them."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from growlm import __version__
from growlm.checkpoint import load_model, save_model
from growlm.cli.completion import list_completions
from growlm.cli.hydra_command import run_key_value_command
from growlm.cli.main import COMMANDS
from tests.model.tiny_models import build, tiny_config
from tests.training.stopping import slow


def growlm(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "growlm", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_help_names_every_command():
    shown = growlm("--help")
    assert shown.returncode == 0
    for name, text in COMMANDS.items():
        assert f"  {name:<10}{text}" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())


@pytest.mark.parametrize("command", [None, "train", "report", "grow"])
def test_every_command_knows_its_version(command):
    shown = growlm(*filter(None, [command]), "--version")
    assert (shown.returncode, shown.stdout) == (0, f"growlm {__version__}\n")


@pytest.mark.parametrize("command", ["train", *slow("verify")])
def test_help_has_a_description_and_an_example(command):
    shown = growlm(command, "--help")
    assert shown.returncode == 0
    assert f"growlm.{command}" in shown.stdout or f"growlm {command}" in shown.stdout
    assert "xample" in shown.stdout or "resume=RUN_DIR" in shown.stdout


def test_a_misspelt_command_is_refused_with_the_nearest():
    shown = growlm("trian")
    assert shown.returncode == 2
    assert "command=trian" in shown.stderr
    assert "train" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["plan", "--cfg", "job", "seed=3"], "seed: 3", marks=pytest.mark.slow),
        (["grow", "--cfg", "job", "out=x"], "out: x"),
    ],
)
def test_the_composed_config_is_printed(arguments, line):
    shown = growlm(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert line in shown.stdout.splitlines()


def test_only_the_commands_own_config_can_be_printed():
    shown = growlm("grow", "--cfg", "hydra")
    assert shown.returncode == 2
    assert "--cfg=hydra" in shown.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("growlm tr", ["train "]),
        ("growlm completion ", ["bash ", "zsh "]),
        ("growlm report ", ["out="]),
        ("growlm train phase_plan=f", ["phase_plan=four_stage "]),
        ("growlm train trainer.precis", ["trainer.precision="]),
        ("growlm evaluate data=e", ["data=embedded "]),
        ("growlm generate format=", ["format=json ", "format=text "]),
        ("growlm plan calibrate=t", ["calibrate=true "]),
        ("growlm grow --v", ["--version "]),
        ("growlm nothing x", []),
        ("growlm train 'x", []),
    ],
)
def test_completion(line, expected):
    assert list_completions(line, COMMANDS) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash: install it to run this test")
def test_completion_in_bash(tmp_path):
    program = tmp_path / "growlm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m growlm "$@"\n')
    program.chmod(0o755)
    script = """
    eval "$(growlm completion bash)"
    COMP_LINE="growlm train phase_plan=th"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=(growlm)
    _growlm; printf '%s|' "${COMPREPLY[@]}"
    """
    shown = subprocess.run(
        ["bash", "-c", script],
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert shown.stdout == "three_stage |three_stage_100 |"


def test_the_old_program_works_and_names_the_new_one():
    code = "from growlm.cli.main import deprecated_train_main; deprecated_train_main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (shown.returncode, shown.stdout) == (0, f"growlm {__version__}\n")
    assert shown.stderr == "warning: growlm-train is now `growlm train`\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_counts_where_a_library_replaces_its_exception(sent, code, monkeypatch, capsys):
    def interrupted(arguments):
        try:
            signal.raise_signal(sent)
        except BaseException:
            raise ValueError("cannot read the size")  # noqa: B904 - as C code does, without a cause
        return 0

    monkeypatch.setattr(sys, "argv", ["growlm.grow"])
    before = signal.default_int_handler
    usual = signal.signal(sent, before)  # a test runner in the background may have SIGINT ignored
    try:
        found = run_key_value_command("", interrupted, compose=None)
    except SystemExit as ended:
        found = ended.code
    finally:
        after = signal.signal(sent, usual)
    assert found == code
    assert "Traceback" not in capsys.readouterr().err
    assert after is before


def test_a_checkpoint_is_grown_by_a_process_begun_for_it(tmp_path):
    """Other tests fork their commands from a process that has imported more (`tests/commands/processes.py`)."""
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "small", {})
    arguments = (f"checkpoint={tmp_path / 'small'}", f"out={tmp_path / 'large'}")
    done = growlm("grow", *arguments, "grow=[{widen: {scale_factor: 2}}]")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "large")[0].config.d_model == 32
