"""Where a run's files go is what was asked for, or said."""

import os

import pytest

from growlm.config.schema import InitialModelConfig, RunConfig
from growlm.runtime.errors import UserError
from growlm.training.resume.resume_from import find_newest_unfinished_run
from growlm.training.run_folder import (
    RunFingerprint,
    check_run_dir_writable,
    create_run_folder,
    describe_other_run_dir,
)


def config(run_dir):
    return RunConfig(name="a", run_dir=run_dir, model=InitialModelConfig())


def test_another_folder_than_the_one_asked_for_is_named(tmp_path):
    wanted = config(str(tmp_path / "r"))
    fingerprint = RunFingerprint("data", "cpu", "32-true")
    with create_run_folder(wanted, fingerprint) as first:
        assert describe_other_run_dir(wanted, first.path) is None
    with create_run_folder(wanted, fingerprint) as second:
        note = describe_other_run_dir(wanted, second.path)
    assert note == f"{tmp_path}/r exists and is not empty; the run's folder is {tmp_path}/r_2"
    assert describe_other_run_dir(config(None), second.path) is None


@pytest.mark.parametrize("run_dir", ["", " ", ".", "..", "work/..", "{here}", "{above}"])
def test_a_run_does_not_write_beside_the_working_folder(run_dir, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "work").mkdir(parents=True)
    monkeypatch.chdir(here)
    given = run_dir.format(here=here, above=tmp_path)
    with pytest.raises(UserError, match=r"^run_dir=.*(is empty|not empty); name a folder"):
        check_run_dir_writable(config(given))
    assert os.listdir(tmp_path) == ["here"]


def test_an_empty_working_folder_is_the_runs_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_run_dir_writable(config("."))
    check_run_dir_writable(config("r"))
    check_run_dir_writable(config("nothing/.."))


@pytest.mark.parametrize("name", ["**", "a**", "[", "[!a]", "r?*"])
def test_a_run_dir_is_no_pattern(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_newest_unfinished_run(config(f"runs/{name}")) is None
