"""What operators do where nothing is said: new channels and blocks are fresh, and noise means copies."""

import pytest
import torch

from growlm.config import load_config
from growlm.config.command_schema import GrowCommand
from growlm.config.load import load_command_config
from growlm.growth import Deepen, Widen, grow, scale_bilaterally
from tests.model.tiny_models import build, tiny_config

GROW = ("checkpoint=a", "out=b", "grow=[{widen: {scale_factor: 2}}, {deepen: {}}]")
PLAN = "phases.wide.grow=[{widen: {scale_factor: 2}}, {deepen: {}}]"


def grown(*operators):
    model = grow(build(tiny_config(), std=0.2), list(operators))
    return {name: parameter.tolist() for name, parameter in model.named_parameters()}


def test_new_channels_and_blocks_are_fresh():
    assert grown(Widen(scale_factor=2)) == grown(Widen(scale_factor=2, new_channels="fresh"))
    assert grown(Deepen()) == grown(Deepen(init="fresh")) != grown(Deepen(init="identity"))


@pytest.mark.parametrize(
    "setting", [{"noise_std": 1e-5}, {"noise_std": 0.0}, {"noise_snr_db": 10.0}, {"split": "1:2"}]
)
def test_noise_or_a_split_means_copies(setting):
    plain, copies = (
        Widen(scale_factor=2, **o, **setting) for o in ({}, {"new_channels": "copies"})
    )
    assert grown(plain) == grown(copies) != grown(Widen(scale_factor=2))


def test_plans_and_commands_have_the_same_defaults():
    in_plan = load_config(PLAN).phases["wide"].grow
    on_disk = load_command_config("grow", GrowCommand, GROW).grow
    for widen, deepen in (in_plan, on_disk):
        assert widen["widen"] == Widen(scale_factor=2)
        assert deepen["deepen"] == Deepen()


def test_growing_bilaterally_copies():
    model = build(tiny_config(), std=0.2)
    operators = [
        Widen(scale_factor=2, noise_std=1e-5, new_channels="copies"),
        Deepen(extra_layers=1, init="identity"),
    ]
    expected = grow(model, operators).state_dict()
    for name, tensor in scale_bilaterally(model, extra_layers=1).state_dict().items():
        assert torch.equal(tensor, expected[name])
