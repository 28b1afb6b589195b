"""`--config-dir` of every command, and what a run with a plan of one's own needs to be resumed."""

import json

import pytest

from growlm.cli.completion import list_completions
from growlm.cli.main import COMMANDS
from tests.commands.processes import CommandProcess, run_command
from tests.config.test_own_plans import MINE
from tests.training.stopping import slow
from tests.training.tiny_run import TINY_MODEL

ARGUMENTS = {
    "grow": ("checkpoint=x", "out=y", "grow=[{deepen: {}}]"),
    "convert": ("source=x", "out=y", "to=growlm"),
    "verify": ("old=x", "new=y"),
    "generate": ("checkpoint=x", "prompt=a"),
    "evaluate": ("checkpoint=x",),
    "report": ("x",),
}
SETTINGS = (
    *TINY_MODEL,
    "tokenizer=bytes",
    "data.documents=200",
    "verification.probe_length=32",
    "trainer.validation_sequences=4",
    "callbacks.sample_tokens=0",
    "growth.extra_layers=1",
    "logger=none",
)


@pytest.fixture
def command(tmp_path, tmp_path_factory):
    (tmp_path / "own" / "phase_plan").mkdir(parents=True)
    (tmp_path / "own" / "phase_plan" / "mine.yaml").write_text(MINE)

    def run(name, *arguments):
        streams = tmp_path_factory.mktemp("streams")
        return run_command(f"growlm.{name}", *arguments, folder=tmp_path, streams=streams)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_is_not_there(command, name, tmp_path):
    done = command(name, *ARGUMENTS.get(name, ()), "--config-dir", "nowhere")
    assert done.returncode == 2
    expected = f"error: --config-dir={tmp_path}/nowhere: there is no such folder\n"
    assert (done.stdout, done.stderr) == ("", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    "options",
    [("--config-dir", "own"), *slow(("--config-dir=own",), ("-cd", "own"), ("-cd=own",))],
)
def test_a_plan_is_found_however_the_option_is_written(command, options):
    done = command("plan", "phase_plan=mine", *options, *SETTINGS, "format=json")
    assert done.returncode == 0, done.stderr
    assert [phase["name"] for phase in json.loads(done.stdout)["phases"]] == ["small", "deep"]


def test_commands_without_groups_find_files_too(command, tmp_path):
    (tmp_path / "own" / "habits").mkdir()
    text = "# @package _global_\ntop_p: 0.25\n"
    (tmp_path / "own" / "habits" / "careful.yaml").write_text(text)
    done = command("generate", "--cfg", "job", "-cd", "own", "+habits=careful", "checkpoint=x")
    assert done.returncode == 0, done.stderr
    assert "top_p: 0.25" in done.stdout


def test_evaluate_finds_data(command, tmp_path):
    (tmp_path / "own" / "data").mkdir()
    (tmp_path / "own" / "data" / "few.yaml").write_text("documents: 17\n")
    done = command("evaluate", "--cfg", "job", "-cd", "own", "data=few", "checkpoint=x")
    assert "documents: 17" in done.stdout


def test_a_run_is_resumed_without_the_folder(tmp_path, tmp_path_factory):
    own = tmp_path / "own" / "phase_plan"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(MINE)
    stop = "trainer.max_time=00:00:00:00"
    options = ("phase_plan=mine", "--config-dir", "own", *SETTINGS, "run_dir=run", stop)
    streams = tmp_path_factory.mktemp("streams")
    started = CommandProcess("growlm.train", options, tmp_path, streams).wait()
    assert started.returncode == 0, started.stderr
    assert "config-dir" not in started.stdout
    assert not (tmp_path / "run" / "summary.json").exists()
    (own / "mine.yaml").unlink()
    resumed = run_command(
        "growlm.train",
        "resume=run",
        "trainer.max_time=null",
        folder=tmp_path,
        streams=tmp_path_factory.mktemp("streams"),
    )
    assert resumed.returncode == 0, resumed.stderr
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"small", "deep"}


def test_own_options_are_completed(tmp_path):
    (tmp_path / "phase_plan").mkdir()
    (tmp_path / "phase_plan" / "mine.yaml").write_text(MINE)
    line = f"growlm plan --config-dir {tmp_path} phase_plan=m"
    assert list_completions(line, COMMANDS) == ["phase_plan=mine "]
    assert list_completions("growlm plan phase_plan=m", COMMANDS) == []
    assert "--config-dir " in list_completions("growlm grow --c", COMMANDS)
