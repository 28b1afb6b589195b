"""`trainer.extra` passes any argument of Lightning's Trainer on, but those that growlm sets."""

import inspect

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.profilers import SimpleProfiler

from growlm.config.schema import TrainerConfig
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from growlm.training.trainer_arguments import (
    SET_BY_GROWLM,
    build_trainer,
    check_extra_arguments,
)
from tests.training.tiny_run import tiny_config


class Watch(Callback):
    def __init__(self):
        self.trainers = []

    def on_train_end(self, trainer, pl_module):
        self.trainers.append(trainer)


def test_arguments_reach_the_trainer_of_every_phase(tmp_path):
    watch = Watch()
    name = "lightning.pytorch.profilers.SimpleProfiler"
    overrides = (
        f"trainer.extra.profiler={{_target_: {name}, dirpath: '{tmp_path}', filename: p}}",
        "trainer.extra.inference_mode=false",
    )
    run_plan(tiny_config(tmp_path / "run", *overrides), [watch])
    assert len(watch.trainers) == 4
    assert len({id(trainer.profiler) for trainer in watch.trainers}) == 4
    for trainer in watch.trainers:
        assert isinstance(trainer.profiler, SimpleProfiler)
        assert "run_training_batch" in trainer.profiler.summary()
    assert list(tmp_path.glob("fit-p*.txt"))


def test_what_growlm_sets_is_refused_by_name():
    known = set(inspect.signature(Trainer.__init__).parameters)
    assert known >= SET_BY_GROWLM.keys()
    for name, instead in SET_BY_GROWLM.items():
        with pytest.raises(UserError) as refused:
            build_trainer(TrainerConfig(extra={name: 1}))
        assert refused.value.key == f"trainer.extra.{name}"
        assert refused.value.reason == f"is set by growlm; {instead}"


@pytest.mark.parametrize(
    ("extra", "key", "reason"),
    [
        ({"profler": "simple"}, "trainer.extra.profler", "did you mean profiler"),
        ({"zzz": 1}, "trainer.extra.zzz", "see the documentation"),
        ({"profiler": "nothing"}, "trainer.extra", "cannot be built with it: .*'simple'"),
        ({"plugins": [{"_target_": "a.B"}]}, "trainer.extra.plugins.0._target_", "no such class"),
        ({"plugins": 3}, "trainer.extra", "cannot be built with it"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(extra, key, reason):
    with pytest.raises(UserError, match=reason) as refused:
        check_extra_arguments(TrainerConfig(extra=extra))
    assert refused.value.key == key


def test_plugins_are_joined():
    settings = TrainerConfig(
        extra={"plugins": {"_target_": "lightning.pytorch.plugins.io.TorchCheckpointIO"}}
    )
    double = {"accelerator": "cpu", "logger": False, "plugins": [DoublePrecision()]}
    trainer = build_trainer(settings, **double, enable_progress_bar=False)
    assert isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO)
    assert isinstance(trainer.precision_plugin, DoublePrecision)
