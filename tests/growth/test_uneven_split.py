"""Columns split 1:2 keep the function and let copies part without noise."""

import pytest
import torch

from growlm.growth import Widen, build_growth_map, grow
from growlm.growth.channel_map import ChannelMap
from growlm.verification import Status, detailed_growth_check
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)


def test_shares_rise_with_the_copy_and_sum_to_one():
    channels = ChannelMap.with_rising_shares(2, torch.tensor([0, 1, 0, 0, -1]))
    assert channels.shares.tolist() == pytest.approx([1 / 6, 1, 2 / 6, 3 / 6, 0])
    assert not channels.has_equal_shares
    assert ChannelMap.round_robin(2, 5).has_equal_shares


@pytest.mark.parametrize("factor", [1.5, 2, 2.25, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape", [{}, EXPERTS, {"n_kv_heads": 2}], ids=["dense", "experts", "grouped"]
)
@pytest.mark.parametrize("family", ["default", "llama"])
def test_lossless(family, shape, tied, factor):
    if factor == 2.25 and "n_kv_heads" in shape:
        factor = 2.5
    model = build(tiny_config(family, tie_embeddings=tied, **shape), std=0.2)
    tokens = random_tokens(model.config)
    grown = grow(model, [Widen(scale_factor=factor, split="1:2", noise_std=0.02)])
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-10


def test_without_noise_twins_have_other_gradients():
    model = build(tiny_config(), std=0.2)
    for split, status in (("equal", Status.FINDING), ("1:2", Status.PASSED)):
        operators = [Widen(scale_factor=2, split=split, noise_std=0.0)]
        report = detailed_growth_check(
            old_model=model,
            new_model=grow(model, operators),
            probe=random_tokens(model.config),
            device="cpu",
            growth_map=build_growth_map(model.config, operators),
        )
        assert report.checks["symmetry"].status is status
