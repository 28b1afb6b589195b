"""Callbacks that would fail in the middle of a run are refused before it."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
)

from growlm.runtime.errors import UserError
from growlm.training import run_plan
from growlm.training.callbacks.lightning_callbacks import check_callbacks
from tests.training.tiny_run import tiny_config


class Stateful(Callback):
    def __init__(self, name=None):
        self.name = name

    @property
    def state_key(self):
        return self.name or super().state_key

    def state_dict(self):
        return {"a": 1}


class Plain(Callback):
    pass


@pytest.fixture
def check(tmp_path):
    config = tiny_config(tmp_path / "run", "logger=csv")

    def check(*callbacks):
        check_callbacks(dict(zip("abc", callbacks, strict=False)), config, "cpu")

    return check


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_monitor_that_nothing_logs(check, kind):
    with pytest.raises(
        UserError, match=r"^a=.*: monitor=val_los is not logged; .* mean val/loss\?"
    ):
        check(kind(monitor="val_los"), EarlyStopping("val/loss"))
    with pytest.raises(UserError, match=r"a run logs train/loss and val/loss$"):
        check(kind(monitor="accuracy"))


@pytest.mark.parametrize("other", [Plain, LambdaCallback, LearningRateMonitor])
def test_another_callback_may_log_it(check, other):
    check(EarlyStopping("accuracy"), other())


@pytest.mark.parametrize("monitor", [None, "step", "epoch", "train/loss", "val/loss"])
def test_a_monitor_that_is_logged(check, monitor):
    check(ModelCheckpoint(monitor=monitor))


def test_states_need_keys_that_differ(check):
    with pytest.raises(
        UserError, match=r"^b=Stateful: has the same state_key as a; .*property state_key"
    ):
        check(Stateful(), Stateful())
    with pytest.raises(
        UserError, match=r"^c=EarlyStopping: has the same state_key as b; .*arguments"
    ):
        check(Stateful(), EarlyStopping("val/loss"), EarlyStopping("val/loss"))
    check(Stateful(), Stateful("other"), Stateful("third"))
    check(Plain(), Plain())


def test_callbacks_of_the_config_and_of_the_caller_are_checked_together(tmp_path):
    stop = (
        "callbacks.extra.x={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}"
    )
    config = tiny_config(tmp_path / "run", stop)
    with pytest.raises(
        UserError, match=r"callbacks\[0\]=.*has the same state_key as callbacks\.extra\.x"
    ):
        run_plan(config, [EarlyStopping("val/loss")])
    assert not (tmp_path / "run").exists()
