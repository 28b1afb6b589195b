"""A group chosen beside a complete config, such as that of a run to repeat, has its effect or is refused."""

import pytest
import yaml

from growlm.config import load_config
from growlm.runtime.errors import UserError
from growlm.training.run_folder import format_saved_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    config = load_config("seed=7", "optimizer.beta2=0.9", "trainer.validate_every=5")
    (folder / "config.yaml").write_text(format_saved_config(config))
    return folder


def repeat(saved, *overrides):
    again = ("+experiment@_global_=../config", "~phase_plan", "run_dir=null")
    return load_config(*again, *overrides, config_dir=saved)


def test_without_a_choice_all_is_as_saved(saved):
    as_saved = yaml.safe_load((saved / "config.yaml").read_text())
    again = yaml.safe_load(format_saved_config(repeat(saved)))
    assert again == as_saved
    assert (again["seed"], again["optimizer"]["beta2"]) == (7, 0.9)


def test_choices_replace_their_sections_alone(saved):
    choices = {
        "optimizer=muon": {"name": "muon", "momentum": 0.95, "beta2": 0.95},
        "schedule=cosine": {"name": "cosine"},
        "tokenizer=bytes": {"name": "bytes"},
        "baseline=scratch": {"kind": "scratch"},
        "model=dense_512": {"d_model": 512},
        "trainer=default": {"validate_every": 0},
    }
    before = yaml.safe_load((saved / "config.yaml").read_text())
    after = yaml.safe_load(format_saved_config(repeat(saved, *choices)))
    for choice, expected in choices.items():
        section = after[choice.partition("=")[0]]
        assert {key: section[key] for key in expected} == expected
    assert {name for name in before if before[name] != after[name]} == {
        choice.partition("=")[0] for choice in choices
    }


def test_single_settings_come_after_the_choice(saved):
    again = repeat(saved, "optimizer.momentum=0.5", "optimizer=sgd").optimizer
    assert (again.name, again.momentum, again.beta2) == ("sgd", 0.5, None)


def test_a_plan_that_is_removed_cannot_be_chosen(saved):
    with pytest.raises(UserError, match="phase_plan=four_stage: has no effect beside ~phase_plan"):
        repeat(saved, "phase_plan=four_stage")


def test_a_file_that_sets_a_part_still_comes_after_the_choice(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\noptimizer: {beta1: 0.8}\n"
    )
    config = load_config("optimizer=muon", "experiment=mine", config_dir=tmp_path)
    assert (config.optimizer.name, config.optimizer.beta1) == ("muon", 0.8)
