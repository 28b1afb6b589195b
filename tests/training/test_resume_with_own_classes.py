"""A stopped run with classes of one's own resumes once the command line trusts their package."""

import json
import shlex

import pytest
from omegaconf import OmegaConf

from growlm.checkpoint.run_record import CONFIG_FILE, RUN_RECORD_FILE
from growlm.config import load_config
from growlm.config.composing.resumed_config import resolve_resume_config
from growlm.runtime.errors import UserError
from growlm.storage.integrity import dump_checksummed_json, hash_file
from growlm.training import Interrupted, run_plan
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.tiny_run import tiny_config

PACKAGE = """
from lightning.pytorch import Callback

class Counter(Callback):
    def __init__(self, start=0):
        self.batches = start
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
    def state_dict(self):
        return {"batches": self.batches}
    def load_state_dict(self, state):
        self.batches = state["batches"]
"""
OWN = ("callbacks.extra.mine._target_=package_of_callbacks.Counter", "callbacks.extra.mine.start=3")


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_callbacks.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def stopped(tmp_path, package):
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *OWN), [SignalAt(3)])
    return tmp_path / "run"


def resumed_config(run_dir, *overrides):
    """The config that `python -m growlm.train resume=RUN_DIR ...` gives `run_plan`."""
    overrides = (f"resume='{run_dir}'", *overrides)
    return resolve_resume_config(load_config(*overrides), overrides)


def test_it_needs_trust(stopped, capsys):
    with pytest.raises(UserError) as refused:
        resumed_config(stopped)
    message = str(refused.value)
    assert message.startswith("callbacks.extra.mine._target_=package_of_callbacks.Counter: ")
    assert message.endswith("add trust=[package_of_callbacks]")
    assert "\n" not in message


def test_the_line_that_it_prints_resumes_it(tmp_path, capsys):
    whole = run_plan(tiny_config(tmp_path / "whole", *OWN))
    capsys.readouterr()
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *OWN), [SignalAt(3)])
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("To resume: ")
    ]
    *command, resume, trust = shlex.split(line.removeprefix("To resume: "))
    assert command == ["python", "-m", "growlm.train"]
    assert trust == "trust=[package_of_callbacks]"
    run_dir = resume.removeprefix("resume=")
    run_plan(resumed_config(run_dir, trust))
    assert_same_run(whole.run_dir, tmp_path / "run")


def test_what_the_command_names_itself_needs_no_trust(stopped):
    config = resumed_config(stopped, *OWN[:1])
    assert config.callbacks.extra["mine"]["start"] == 3
    auto = tiny_config(stopped, *OWN, "resume=auto")
    run_plan(auto)
    assert json.loads((stopped / "summary.json").read_text())


def change_config(run_dir, change):
    """Change a stopped run's config as somebody would who wants it believed."""
    config = OmegaConf.load(run_dir / CONFIG_FILE)
    change(config)
    OmegaConf.save(config, run_dir / CONFIG_FILE)
    record = run_dir / "resume" / RUN_RECORD_FILE
    content = json.loads(record.read_text())
    content = {key: value for key, value in content.items() if key not in ("sha256", "checksum")}
    content["config"] = hash_file(run_dir / CONFIG_FILE)
    record.write_text(dump_checksummed_json(content))


def test_a_file_cannot_say_whom_to_trust(stopped):
    change_config(stopped, lambda config: config.update({"trust": ["package_of_callbacks"]}))
    with pytest.raises(UserError, match=r"add trust=\[package_of_callbacks\]"):
        resumed_config(stopped)


@pytest.mark.parametrize("nested", [False, True])
def test_a_trusted_package_does_not_let_others_in(nested, stopped):
    def change(config):
        spec = {"_target_": "os.system", "command": "false"}
        extra = config.callbacks.extra
        extra.update({"mine": {**extra.mine, "start": spec} if nested else spec})

    change_config(stopped, change)
    key = "callbacks.extra.mine.start._target_" if nested else "callbacks.extra.mine._target_"
    with pytest.raises(UserError, match=r"add trust=\[package_of_callbacks,os\]") as refused:
        resumed_config(stopped, "trust=[package_of_callbacks]")
    assert (refused.value.key, refused.value.value) == (key, "os.system")
