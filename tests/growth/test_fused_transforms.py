"""A chain done in few passes gives what its pieces give one after another."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.growth.channel_map import FILLER, ChannelMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.fused import apply_to_moment, apply_to_weight
from growlm.growth.transforms.tensor_transforms import Copy, Fill, Scale, Split, TensorTransform

SHAPES = ((4, 5), (2, 4, 5))
"""A matrix, and a stack of two, whose first dimension no fill is along."""


@st.composite
def channel_maps(draw, old_size: int) -> ChannelMap:
    new_size = draw(st.integers(old_size, 2 * old_size + 1))
    kind = draw(st.sampled_from(["tiled", "round robin", "fresh", "rising", "mixed"]))
    if kind == "tiled":
        return ChannelMap.tiled(old_size, new_size)
    if kind == "mixed":
        more = draw(st.lists(st.sampled_from([FILLER, *range(old_size)]), max_size=old_size))
        source = draw(st.permutations([*range(old_size), *more]))
        return ChannelMap.with_equal_shares(old_size, torch.tensor(source))
    channels = ChannelMap.round_robin(old_size, new_size)
    if kind == "rising":
        return ChannelMap.with_rising_shares(old_size, channels.source)
    return channels.without_copies() if kind == "fresh" else channels


@st.composite
def chains(draw) -> tuple[torch.Tensor, list[TensorTransform]]:
    shape, pieces = draw(st.sampled_from(SHAPES)), []
    for dim in draw(st.permutations(range(len(shape))[-2:])):
        channels = draw(channel_maps(shape[dim]))
        pieces.append(draw(st.sampled_from([Copy, Split]))(dim, channels))
        if channels.has_fillers:
            kind = draw(st.sampled_from(["zero", "mean", "random"]))
            pieces.append(Fill(dim, channels, kind, (dim, "x")))
        if draw(st.integers(0, 4)) == 0:
            pieces.append(Scale(3.0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, dtype=torch.float64, generator=generator) + 0.1, pieces


@settings(max_examples=500)
@given(chain=chains())
def test_weights(chain):
    old, pieces = chain
    expected = old
    with GrowthRng(0) as draws:
        for piece in pieces:
            expected = piece.transform_weight(expected.clone(), draws)
        found = apply_to_weight(pieces, old.clone(), draws)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@given(chain=chains(), power=st.sampled_from([1, 2]))
def test_moments(chain, power):
    old, pieces = chain
    expected = old
    for piece in pieces:
        expected = piece.transform_moment(expected.clone(), power)
    found = apply_to_moment(pieces, old.clone(), power)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
