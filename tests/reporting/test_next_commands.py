"""The commands that a finished run ends with: each of them runs as it is printed."""

import io
import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from growlm.cli.free_text import quote_free_texts
from growlm.config import load_config
from growlm.config.command_schema import ConvertCommand, EvaluateCommand, GenerateCommand
from growlm.config.load import load_command_config
from growlm.config.schema import DataConfig, EvaluationTextConfig, MixedSourceConfig
from growlm.convert import convert
from growlm.evaluate import evaluate
from growlm.generate import generate
from growlm.reporting.console.next_commands import (
    list_data_arguments,
    list_next_commands,
    print_next_commands,
)
from growlm.training import run_plan
from tests.training.tiny_run import tiny_config

ONE_PHASE = ("~phases.moe", "~phases.wide", "~phases.deep")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, in a folder whose name a shell and Hydra would misread."""
    folder = tmp_path_factory.mktemp("runs") / "a run, s=1"
    return run_plan(tiny_config(folder, *ONE_PHASE, "seed=3"))


def split(command, module, schema):
    """The arguments of a command as a shell and the command itself take them apart."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", f"growlm.{module}"]
    return quote_free_texts(words[3:], schema)


def test_the_commands_run(run, capsys):
    commands = list_next_commands(run.run_dir, run.config)
    assert list(commands) == ["generate", "evaluate", "convert", "resume"]
    capsys.readouterr()
    arguments = split(commands["generate"], "generate", GenerateCommand)
    assert generate([*arguments, "max_new_tokens=2"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")
    arguments = split(commands["evaluate"], "evaluate", EvaluateCommand)
    assert evaluate([*arguments, "limit=64"]) == 0
    assert "embedded (validation): 1 documents" in capsys.readouterr().out
    assert convert(split(commands["convert"], "convert", ConvertCommand)) == 0
    assert (run.run_dir / "huggingface" / "config.json").is_file()
    again = list_next_commands(run.run_dir, run.config)["convert"]
    assert f"out={run.run_dir}/huggingface_2" in shlex.split(again)
    words = shlex.split(commands["resume"])
    assert words[4:] == ["phases.dense.steps=+4"]
    longer = run_plan(load_config(*quote_free_texts(words[3:])))
    assert [phase.steps for phase in longer.summary.phases] == [8]


def test_they_are_printed_unbroken(run):
    out = io.StringIO()
    print_next_commands(Console(file=out, width=40), run.run_dir, run.config)
    _, heading, *lines = out.getvalue().splitlines()
    assert heading.startswith("Next ─")
    assert [line.split("  ", 2)[1] for line in lines] == [
        "generate",
        "evaluate",
        "convert",
        "resume",
    ]
    assert [line.split("  ", 2)[2].strip() for line in lines] == list(
        list_next_commands(run.run_dir, run.config).values()
    )


def test_only_what_works_is_offered(tmp_path):
    config = tiny_config(tmp_path, *ONE_PHASE)
    assert list_next_commands(tmp_path, config) == {}
    (tmp_path / "checkpoints" / "dense_model").mkdir(parents=True)
    (tmp_path / "checkpoints" / "dense_model" / "config.json").touch()
    (tmp_path / "resume").mkdir()
    assert list(list_next_commands(tmp_path, config)) == [
        "generate",
        "evaluate",
        "convert",
        "resume",
    ]
    config.checkpoint.keep_final_state = False
    config.tokenizer.name = "own"
    assert list_next_commands(tmp_path, config) == {}


@pytest.fixture(scope="module")
def config():
    return load_config("seed=2")


@pytest.mark.parametrize(
    "data",
    [
        DataConfig(documents=50, validation_every=5),
        DataConfig(
            source="text",
            path="a folder/it's, =.jsonl",
            column="messages.0.content",
            filter={"lang": "en", "score": ">=3", "ok": True, "kind": ["a b", "null"]},
            max_characters=2000,
            truncate=True,
            validation=EvaluationTextConfig(path="held out.jsonl", filter={"n": 1.5}),
        ),
        DataConfig(source="huggingface", name="owner/name", split="train[:10%]", streaming=True),
        DataConfig(
            source="mixture",
            sources={"mine": MixedSourceConfig(source="text", path="f,g.txt", weight=2.5)},
        ),
    ],
    ids=lambda data: data.source,
)
def test_the_evaluation_reads_the_documents_of_the_run(config, data):
    arguments = quote_free_texts(list_data_arguments(replace(config, data=data)), EvaluateCommand)
    command = load_command_config("evaluate", EvaluateCommand, ["checkpoint=x", *arguments])
    assert command.data == data
    assert command.seed == (2 if data.source in ("embedded", "mixture") else 0)


def test_what_no_command_line_can_say_is_not_offered(config):
    odd = DataConfig(source="text", path="x.csv", filter={"a key": 1})
    mixed = DataConfig(source="mixture", sources={"other": MixedSourceConfig(path="x.txt")})
    for data in (odd, mixed, DataConfig(source="own", _target_="my_package.MyData")):
        assert list_data_arguments(replace(config, data=data)) is None
