"""Settings that a run uses, with a consequence that few would want, are reported."""

from dataclasses import replace

import pytest

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.planner.plan_notes import describe_doubtful_settings


@pytest.fixture(scope="module")
def config():
    return load_config()


def notes(config):
    return describe_doubtful_settings(config, make_plan(config, 1024))


def with_phase(config, name, **changes):
    return replace(config, phases=config.phases | {name: replace(config.phases[name], **changes)})


def with_model(config, **changes):
    return replace(config, model=replace(config.model, **changes))


def test_the_shipped_defaults_need_no_note(config):
    assert notes(config) == []


def test_a_warmup_that_outlasts_its_phase(config):
    config = with_phase(config, "dense", steps=3, warmup_steps=1000)
    (note,) = notes(config)
    assert note.startswith("warning: phases.dense.warmup_steps=1,000 exceeds its 3 steps; ")
    assert note.endswith("the rate reaches 0.003 of lr=0.002")
    assert notes(with_phase(config, "dense", warmup_steps=3)) == []
    assert notes(with_phase(config, "dense", steps=0)) == []  # it is not trained


def test_a_warmup_that_outlasts_the_plan(config):
    """Over the first phases it is what the schedule is for; over all of them it never ends."""
    long = replace(config.schedule, warmup_steps=331)
    (note,) = notes(replace(config, schedule=long))
    assert note.startswith("warning: schedule.warmup_steps=331 exceeds the plan's 330 steps; ")
    assert notes(replace(config, schedule=replace(long, warmup_steps=330))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"d_model": 256},
            "model.n_heads=4 heads of model.head_dim=32 are 128 channels, in a model of d_model=256; "
            "model.head_dim=64 would make them equal (model.d_ff=512 is 2 times d_model)",
        ),
        ({"n_heads": 8}, "256 channels, in a model of d_model=128; model.head_dim=16 would"),
        ({"n_heads": 8}, ", and model.n_kv_heads=4)"),
        ({"head_dim": 64}, "256 channels, in a model of d_model=128; model.head_dim=32 would"),
        ({"d_model": 130}, "128 channels, in a model of d_model=130 (model.d_ff=512 is 3.94"),
    ],
)
def test_attention_that_does_not_follow_the_width(config, changes, said):
    (note,) = notes(replace(with_model(config, **changes), phases={}))
    assert said in note


def test_sizes_that_fit_or_come_from_a_folder(config):
    assert notes(with_model(config, d_model=256, head_dim=64)) == []
    assert notes(replace(with_model(config, d_model=256, path="folder"), phases={})) == []
