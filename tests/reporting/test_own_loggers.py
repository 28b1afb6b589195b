"""Lightning loggers of the user's own, several at once, and trackio."""

import csv
import importlib
import sys
from types import SimpleNamespace

import pytest

from growlm.config import load_config
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from growlm.training.requirements import check_requirements
from tests.training.tiny_run import TINY, rows

PACKAGE = """
from lightning.pytorch.loggers import Logger

MADE = []

class Recorder(Logger):
    def __init__(self, label, broken=False):
        super().__init__()
        self.label, self.broken, self.calls = label, broken, []
        MADE.append(self)
    name = version = "recorder"
    def log_hyperparams(self, params):
        self.calls.append(("hyperparameters", params))
    def log_metrics(self, metrics, step):
        if self.broken:
            raise ConnectionError("the server is gone")
        self.calls.append(("metrics", step, metrics))
    def save(self):
        self.calls.append(("save",))
    def finalize(self, status):
        self.calls.append(("finalize", status))
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_loggers.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("package_of_loggers", None)
    importlib.invalidate_caches()
    return importlib.import_module("package_of_loggers")


def short(run_dir, *overrides):
    lengths = (("dense", 2), ("moe", 1), ("wide", 0), ("deep", 0))
    steps = [f"phases.{name}.steps={number}" for name, number in lengths]
    return load_config(*TINY, *steps, f"run_dir='{run_dir}'", *overrides)


def test_several_loggers_get_what_the_run_logs(tmp_path, package):
    overrides = (
        "logger._target_=package_of_loggers.Recorder",
        "logger.label=first",
        "logger.extra.second={_target_: package_of_loggers.Recorder, label: second}",
        "logger.extra.table={_target_: lightning.pytorch.loggers.CSVLogger, name: table}",
    )
    run = run_plan(short(tmp_path / "run", *overrides))
    first, second = package.MADE
    assert (first.label, second.label) == ("first", "second")
    assert first.calls == second.calls
    (kind, parameters), *metrics, save, end = first.calls
    assert (kind, save, end) == ("hyperparameters", ("save",), ("finalize", "success"))
    assert (parameters["logger.arguments.label"], parameters["seed"]) == ("first", 0)
    losses = [(step, m["train/loss"]) for _, step, m in metrics if "train/loss" in m]
    history = rows(run.run_dir)
    assert losses == [(row["global_step"], row["loss"]) for row in history]
    (table,) = run.run_dir.glob(
        "table/version_0/metrics.csv"
    )  # a required save_dir is the run's folder
    with table.open() as file:
        logged = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == [loss for _, loss in losses]


def test_a_logger_that_breaks_ends_the_run_as_any_does(tmp_path, package):
    overrides = (
        "logger=none",
        "logger.extra.b={_target_: package_of_loggers.Recorder, label: b, broken: true}",
        "logger.extra.a={_target_: package_of_loggers.Recorder, label: a}",
    )
    with pytest.raises(ConnectionError, match="the server is gone"):
        run_plan(short(tmp_path / "run", *overrides))
    broken, other = package.MADE
    assert broken.calls[-1] == other.calls[-1] == ("finalize", "failed")


@pytest.mark.parametrize(
    ("spec", "key", "reason"),
    [
        ("{_target_: package_of_loggers.Recorder}", "logger.extra.x", "missing .*label"),
        (
            "{_target_: package_of_loggers.Recorder, label: a, b: 1}",
            "logger.extra.x.b",
            "known: label",
        ),
        ("{label: a}", "logger.extra.x", "needs a _target_"),
        ("{_target_: os.system}", "logger.extra.x._target_", "is not a Lightning Logger"),
        (
            "{_target_: lightning.pytorch.loggers.CSVLogger, a: 1}",
            "logger.extra.x.a",
            "no such argument",
        ),
    ],
)
def test_what_cannot_be_used_is_said_before_the_run(spec, key, reason, package):
    with pytest.raises(UserError, match=reason) as refused:
        check_logger(load_config("logger=none", f"logger.extra.x={spec}"))
    assert refused.value.key == key
    assert package.MADE == []


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed")
def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"logger=.*MLFlowLogger: cannot be instantiated: .*mlflow"):
        check_logger(load_config("logger._target_=lightning.pytorch.loggers.MLFlowLogger"))


def test_trackio_is_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"logger=trackio: needs trackio.*pip install trackio"):
        check_requirements(load_config("logger=trackio"), "cpu")


def test_trackio_gets_what_the_run_logs(tmp_path, monkeypatch):
    """With a stand-in for the package, of which the adapter uses three functions."""
    made = []

    class Run:
        def __init__(self, **settings):
            self.settings, self.calls, self.finished = settings, [], False
            made.append(self)

        def log(self, metrics, step):
            self.calls.append((step, metrics))

        def finish(self):
            self.finished = True

    spec = importlib.util.spec_from_loader("trackio", loader=None)
    monkeypatch.setitem(
        sys.modules,
        "trackio",
        SimpleNamespace(init=Run, finish=lambda: made[0].finish(), __spec__=spec),
    )
    monkeypatch.delitem(sys.modules, "growlm.reporting.loggers.trackio_logger", raising=False)
    run = run_plan(short(tmp_path / "run", "logger=trackio", "logger.project=mine"))
    (one,) = made
    expected = {"project": "mine", "name": "run", "group": None, "resume": "never"}
    assert one.settings.items() >= expected.items()
    assert one.settings["config"]["model.d_model"] == 16
    losses = [m["train/loss"] for _, m in one.calls if "train/loss" in m]
    assert losses == [row["loss"] for row in rows(run.run_dir)]
    assert one.finished
