"""What is wrong on a command line is said in one line, before anything is written."""

from dataclasses import replace

import pytest

from growlm.cli.hydra_command import run_key_value_command
from growlm.config import load_config
from growlm.runtime.errors import UserError
from growlm.training import run_plan


@pytest.mark.parametrize(
    "setting",
    [{"max_time": "10s"}, {"max_time": "00:01:00"}, {"timeout_minutes": 1e300}],
    ids=str,
)
def test_a_run_is_checked_before_it_reads_a_clock(setting):
    config = load_config()
    (key,) = setting
    with pytest.raises(UserError, match=rf"^trainer\.{key}="):
        run_plan(replace(config, trainer=replace(config.trainer, **setting)))


@pytest.mark.parametrize(("composes_run", "code"), [(True, 0), (False, 2)])
def test_commands_that_compose_a_run_remove_settings(composes_run, code, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan", "~phases.deep", "+phases.more.steps=1"])
    got = []
    found = run_key_value_command(
        "", lambda given: got.extend(given) or 0, compose=None, composes_run=composes_run
    )
    assert (found, got) == (code, ["~phases.deep", "+phases.more.steps=1"] if code == 0 else [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.dep.lr=1", r"did you mean deep\? \(\+phases\.dep\.lr=\.\.\. would add a phase\)$"),
        (
            "phases.xx.lr=1",
            r"has dense, moe, wide, deep \(\+phases\.xx\.lr=\.\.\. would add a phase\)$",
        ),
    ],
)
def test_a_misspelled_phase(override, message):
    with pytest.raises(UserError, match=message):
        load_config(override)
