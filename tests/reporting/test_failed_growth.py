"""What the report and the console say of a growth that failed: where, why, and what runs it again."""

import json
import shlex

import pytest

from growlm.reporting.console.next_commands import list_ways_on
from growlm.reporting.html import write_report
from growlm.reporting.html.shell_commands import build_run_commands
from growlm.reporting.reading.failed_growth import find_failed_growth
from growlm.reporting.reading.run_files import read_run
from growlm.training import GrowthError
from tests.reporting.written_run import page_data, write_run
from tests.training.tiny_run import tiny_run

NOISE = "phases.wide.grow.0.widen.noise_std=0.01"


def failed_run(folder, checks, **config):
    write_run(folder, finished=False, **config)
    boundaries = json.loads((folder / "boundaries.json").read_text())[:2]
    found = {name: {"status": "failed", "summary": f"{name} is off"} for name in checks}
    widen = {"scale_factor": 2, "noise_std": 0.0, "noise_snr_db": None}
    boundaries[1] |= {"passed": False, "checks": found, "operators": [{"widen": widen}]}
    (folder / "boundaries.json").write_text(json.dumps(boundaries))
    return read_run(folder)


@pytest.mark.parametrize(
    ("checks", "tolerance", "overrides"),
    [
        (["symmetry"], 1e-4, [NOISE]),
        (["functional"], 1e-4, []),
        (["functional", "router"], 1e-9, ["verification.tolerance=0.0001"]),
        (["functional", "weights"], 1e-9, []),
        (["symmetry", "functional"], 1e-9, [NOISE, "verification.tolerance=0.0001"]),
    ],
)
def test_settings_that_let_it_pass(tmp_path, checks, tolerance, overrides):
    run = failed_run(tmp_path / "run", checks, verification={"tolerance": tolerance})
    failed = find_failed_growth(run)
    assert failed.overrides == overrides
    assert list(failed.checks) == checks
    commands = {command["title"]: command["command"] for command in build_run_commands(run)}
    if overrides:
        assert shlex.split(commands["Run again so that the growth passes"])[-len(overrides) :] == (
            overrides
        )
        assert not any("resume=" in command for command in commands.values())
    else:
        assert "operator is at fault" in failed.advice


def test_other_runs_have_no_failed_growth(tmp_path):
    assert find_failed_growth(read_run(write_run(tmp_path / "finished"))) is None
    assert find_failed_growth(read_run(write_run(tmp_path / "stopped", finished=False))) is None


def test_a_real_one_is_told_with_a_command_that_trains_on(tmp_path, capsys):
    overrides = [
        *("growth.scale_factor=2", "growth.noise_std=0", "~phases.deep"),
        "verification.require_symmetry_breaking=true",
    ]
    folder = tmp_path / "run"
    with pytest.raises(GrowthError):
        tiny_run(folder, *overrides)
    out = capsys.readouterr().out
    assert "To resume" not in out
    line = next(line for line in out.splitlines() if line.startswith("To run again: "))
    again = shlex.split(line.removeprefix("To run again: "))
    assert again[-1] == NOISE
    write_report([folder], folder / "report.html")
    first, second = page_data(folder / "report.html")["notes"]
    assert first.startswith("The growth moe → wide failed its checks after step 8")
    assert NOISE in second
    (folder / "boundaries.json").write_text("{")
    assert list_ways_on(folder, "To resume: it") == ["To resume: it"]


def test_a_growth_that_is_not_lossless_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    boundaries = json.loads((folder / "boundaries.json").read_text())
    lost = {"status": "finding", "summary": "logits moved"}
    boundaries[2] |= {"lossless": False, "jump": 0.25, "checks": {"functional": lost}}
    (folder / "boundaries.json").write_text(json.dumps(boundaries))
    write_report([folder], folder / "report.html")
    data = page_data(folder / "report.html")
    assert data["title"].endswith("the growth wide → deep was not lossless, jump +0.25")
    assert [boundary["verdict"]["status"] for boundary in data["boundaries"]] == [
        "passed",
        "passed",
        "finding",
    ]
