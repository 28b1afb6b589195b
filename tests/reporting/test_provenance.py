"""Where a run's numbers come from: recorded by the run, shown at the top of its report."""

import json

import pytest

from growlm.reporting.html import write_report
from growlm.reporting.provenance import (
    describe_session,
    find_git_commit,
    format_command,
    record_session,
)
from tests.reporting.written_run import page_data, write_run


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/usr/bin/python3", "-m", "growlm.train", "seed=1"], "python -m growlm.train seed=1"),
        (["python", "-X", "dev", "-m", "growlm.train"], "python -m growlm.train"),
        (["python", "/venv/bin/growlm", "train", "a='b c'"], "growlm train 'a='\"'\"'b c'\"'\"''"),
        (["python", "-m", "growlm", "train", "seed=1"], "growlm train seed=1"),
        (["python", "my_script.py", "growlm.train"], None),
        (["python", "-m", "pytest", "growlm"], None),
        (["python"], None),
    ],
)
def test_the_command_is_as_it_would_be_typed(arguments, command):
    assert format_command(arguments) == command


def test_each_start_adds_a_session(tmp_path):
    record_session(tmp_path, "a processor", 2)
    (tmp_path / "provenance.json").write_text("[")  # damaged: no reason to stop
    record_session(tmp_path, "a processor", 2)
    record_session(tmp_path, "another one", 1)
    sessions = json.loads((tmp_path / "provenance.json").read_text())
    assert [(one["processor"], one["processes"]) for one in sessions] == [
        ("a processor", 2),
        ("another one", 1),
    ]
    assert {"growlm", "python", "torch", "lightning"} <= set(sessions[0]["versions"])
    assert sessions[0]["host"]


def test_a_folder_outside_git_has_no_commit(tmp_path):
    assert find_git_commit(tmp_path / "missing") is None


def facts(folder):
    write_report([folder], folder / "report.html")
    data = page_data(folder / "report.html")
    return {fact["label"]: fact["value"] for fact in data["provenance"]}, data


def test_the_page_begins_with_it(tmp_path):
    folder = write_run(tmp_path / "run")
    first = describe_session("AMD EPYC", 1) | {
        "started": "2026-03-04T05:06:07+00:00",
        "command": "python -m growlm.train <b>",
        "git_commit": "0123456789ab",
    }
    second = first | {"processor": "NVIDIA H200", "processes": 8}
    (folder / "provenance.json").write_text(json.dumps([first, second]))
    found, data = facts(folder)
    assert found["started"] == "2026-03-04 05:06 UTC; resumed 1 ×"
    assert found["command"] == "python -m growlm.train <b>"
    assert found["device"] == "AMD EPYC; then NVIDIA H200"
    assert (found["git commit"], found["processes"], found["seed"]) == ("0123456789ab", "8", "0")
    assert "torch " in found["versions"]
    assert found["folder"] == str(folder)
    strip = {value["label"]: value["value"] for value in data["strip"]}
    assert (strip["compute"], strip["time"]) == ("160 GFLOP", "1 min 20 s")
    assert [one["command"] for one in data["commands"] if one["title"] == "As typed"] == [
        first["command"]
    ]


def test_runs_from_before_it_was_recorded_show_the_rest(tmp_path):
    found, data = facts(write_run(tmp_path / "run"))
    assert set(found) == {"seed", "device", "precision", "folder"}
    assert [one["title"] for one in data["commands"]] == ["Reproduce"]
