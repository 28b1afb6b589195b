"""What W&B would refuse is refused before the run, and what it is told comes from where it was written."""

import os
from dataclasses import replace
from functools import cache

import pytest

from growlm.config import load_config
from growlm.plan import plan
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.reporting.loggers.wandb_settings import resolve_wandb_settings, shorten
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.tiny_run import tiny_config

KEY = "0123456789" * 4
LONG = "x" * 200


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    """Nothing of W&B's but what a test sets."""
    for name in os.environ:
        if name.startswith("WANDB_") and name != "WANDB_DISABLE_GIT":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@cache
def plain_config():
    return load_config("logger=wandb")


def config(**settings):
    """The default plan with settings of its logger."""
    plain = plain_config()
    return replace(plain, logger=replace(plain.logger, **settings))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("project", "my/proj", "project=my/proj: contains /, and W&B allows none of / "),
        ("project", LONG, "project=x+: has 200 characters, and W&B allows at most 128"),
        ("project", "", "project='': must not be empty"),
        ("entity", "me/you", "entity=me/you: contains /"),
        ("group", LONG, "group=x+: has 200 characters"),
        ("tags", ["a", ""], "tags='': W&B allows no empty tag"),
        ("tags", [LONG], "tags=x+: has 200 characters, and W&B allows at most 64"),
        ("mode", "online", "mode=online: you are not logged in to W&B"),
    ],
)
def test_a_setting_that_wandb_refuses(key, value, message):
    with pytest.raises(UserError, match=f"^logger.{message}"):
        check_logger(config(**{key: value}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WANDB_MODE", "foo", "Input should be 'online', 'offline'"),
        ("WANDB_MODE", "", "Input should be 'online', 'offline'"),
        ("WANDB_MODE", "shared", "a run is logged from one process"),
        ("WANDB_MODE", "online", "you are not logged in to W&B"),
        ("WANDB_PROJECT", "my/proj", "cannot contain characters"),
        ("WANDB_ENTITY", "me/you", "contains /"),
        ("WANDB_RUN_GROUP", LONG, "has 200 characters"),
        ("WANDB_NAME", LONG, "has 200 characters"),
        ("WANDB_TAGS", "a,,b", "Tag at index 1 is empty"),
        ("WANDB_BASE_URL", "nowhere", "valid URL"),
        ("WANDB_BASE_URL", "http://[::1", "valid URL"),
        ("WANDB_SILENT", "maybe", "valid boolean"),
        ("WANDB_INIT_TIMEOUT", "soon", "valid number"),
        ("WANDB_RUN_ID", "mine", "growlm gives every run an id"),
        ("WANDB_RESUME", "must", "growlm resumes the W&B run of resume=RUN_DIR"),
        ("WANDB_FORK_FROM", "run?_step=1", "growlm logs every run as a new one"),
    ],
)
def test_an_environment_variable_that_wandb_refuses(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as refused:
        check_logger(config())
    assert str(refused.value).startswith(f"{name}={value}: ")


@pytest.mark.parametrize("from_file", [False, True], ids=["variable", "netrc"])
def test_a_key_that_is_none(from_file, no_login, monkeypatch):
    if from_file:
        (no_login / "netrc").write_text("machine api.wandb.ai\n  login user\n  password tooshort\n")
    else:
        monkeypatch.setenv("WANDB_API_KEY", "tooshort")
    with pytest.raises(UserError, match=r"=too\.\.\.: is not an API key .* has 8 characters"):
        check_logger(config())
    assert check_logger(config(mode="offline")) == []


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_login_at_either_address_of_wandb(host, no_login):
    (no_login / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    assert resolve_wandb_settings(config(), "run").mode == "online"


def test_nothing_is_made_before_the_refusal(tmp_path):
    with pytest.raises(UserError, match=r"logger\.project"):
        run_plan(tiny_config(tmp_path / "run", "logger=wandb", "logger.project=my/proj"))
    with pytest.raises(UserError, match=r"logger\.project"):
        plan(["logger.project=my/proj"])
    assert not (tmp_path / "run").exists()


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "group",
    "WANDB_NAME": "named",
    "WANDB_TAGS": "one,two",
    "WANDB_MODE": "dryrun",
}


def test_a_key_wins_over_a_variable_and_that_over_the_default(no_login, monkeypatch):
    default = resolve_wandb_settings(config(), "folder")
    assert (default.project, default.entity, default.group) == ("growlm", None, None)
    assert (default.name, default.tags, default.mode) == ("folder", ["quickstart"], "offline")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = resolve_wandb_settings(config(tags=["mine", "one"]), "folder")
    assert (found.project, found.entity, found.group) == ("theirs", "team", "group")
    assert found.tags == ["quickstart", "mine", "one", "two"]
    assert (found.name, found.mode) == ("named", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    keys = {"project": "mine", "entity": "me", "group": "g", "mode": "online"}
    set_here = resolve_wandb_settings(config(**keys), "folder")
    assert (set_here.project, set_here.entity, set_here.group) == ("mine", "me", "g")
    assert set_here.mode == "online"


def test_settings_files_of_wandb_come_last(no_login, monkeypatch):
    (no_login / "config").mkdir()
    (no_login / "config" / "settings").write_text(
        "[default]\nproject = filed\nentity = f\nmode = disabled\n"
    )
    found = resolve_wandb_settings(config(entity="me"), "folder")
    assert (found.project, found.entity, found.mode) == ("filed", "me", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert resolve_wandb_settings(config(), "folder").project == "theirs"


def test_the_folder_is_the_run_s(monkeypatch):
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    (note,) = check_logger(config(mode="offline"))
    assert note.startswith("WANDB_DIR=/elsewhere is not used")


def test_names_and_tags_that_growlm_makes_are_shortened():
    found = resolve_wandb_settings(replace(config(), name=LONG), "y" * 150)
    assert found.name == shorten("y" * 150, 128) != "y" * 128
    assert [len(tag) for tag in found.tags] == [64]


def test_long_names_stay_different():
    assert shorten("a" * 128, 128) == "a" * 128
    one, other = shorten("a" * 129, 128), shorten("a" * 130, 128)
    assert len(one) == len(other) == 128
    assert one != other
