"""`ChannelMap` against naive loops over channels."""

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.growth.channel_map import FILLER, ChannelMap
from growlm.growth.operators.widen import map_heads
from growlm.model.config import ModelConfig
from growlm.model.keyed_rng import keyed_normal


@st.composite
def channel_maps(draw, old_size=None):
    """Every kind that growth makes, and any other in which each old channel has a copy."""
    old_size = old_size or draw(st.integers(1, 6))
    new_size = old_size + draw(st.integers(0, 2 * old_size + 1))
    kind = draw(st.sampled_from(["tiled", "round_robin", "identity", "any"]))
    if kind == "identity":
        return ChannelMap.identity(old_size)
    if kind == "any":
        rest = draw(st.lists(st.integers(FILLER, old_size - 1), max_size=8))
        source = draw(st.permutations([*range(old_size), *rest]))
        return ChannelMap.with_equal_shares(old_size, torch.tensor(source))
    return getattr(ChannelMap, kind)(old_size, new_size)


@st.composite
def chains(draw):
    """Two maps, the second beginning where the first ends."""
    first = draw(channel_maps())
    return first, draw(channel_maps(old_size=first.new_size))


@given(channel_maps())
def test_shares_of_all_copies_sum_to_one(channels):
    for channel in range(channels.old_size):
        assert channels.shares[channels.source == channel].sum().item() == pytest.approx(1.0)
    assert not channels.shares[channels.source == FILLER].any()


@given(channel_maps())
def test_copies_counts(channels):
    source = channels.source.tolist()

    assert channels.copy_counts().tolist() == [
        0 if s == FILLER else source.count(s) for s in source
    ]
    assert channels.has_fillers == (FILLER in source)


@given(channel_maps())
def test_twins_pair_every_further_copy_with_the_first(channels):
    source = channels.source.tolist()

    expected = [
        [source.index(s), j] for j, s in enumerate(source) if s != FILLER and source.index(s) != j
    ]

    assert channels.duplicate_pairs.tolist() == expected


@given(channel_maps(), st.integers(0, 2), st.integers(0, 100))
def test_sum_copies_is_the_loop(channels, dim, seed):
    shape = [2, 3, 2]
    shape[dim] = channels.new_size
    tensor = keyed_normal(tuple(shape), seed).double()
    before = tensor.clone()

    actual = channels.sum_copies(tensor, dim)

    rows = tensor.movedim(dim, 0)
    expected = torch.zeros(channels.old_size, *rows.shape[1:], dtype=torch.float64)
    for new, old in enumerate(channels.source.tolist()):
        if old != FILLER:
            expected[old] += rows[new]
    assert (actual.movedim(dim, 0) - expected).abs().max() <= 1e-14
    assert torch.equal(tensor, before)


@given(chains())
def test_then_is_one_after_the_other(chain):
    first, second = chain

    joined = first.then(second)

    assert joined.old_size == first.old_size
    assert joined.new_size == second.new_size
    for j, middle in enumerate(second.source.tolist()):
        if middle == FILLER:
            assert joined.source[j] == FILLER
            assert joined.shares[j] == 0
        else:
            assert joined.source[j] == first.source[middle]
            assert joined.shares[j] == first.shares[middle] * second.shares[j]


@given(chains())
def test_shares_still_sum_to_one_after_a_second_map(chain):
    joined = chain[0].then(chain[1])

    for channel in range(joined.old_size):
        assert joined.shares[joined.source == channel].sum().item() == pytest.approx(1.0)


@given(chains(), st.integers(0, 100))
def test_summing_copies_undoes_a_share_weighted_copy(chain, seed):
    """Even through two maps, of unequal numbers of copies."""
    joined = chain[0].then(chain[1])
    x = keyed_normal((joined.old_size,), seed).double()

    carried = torch.where(joined.is_filler, 5.0, x[joined.source.clamp(min=0)] * joined.shares)

    assert (joined.sum_copies(carried, 0) - x).abs().max() <= 1e-14


@given(channel_maps(), st.integers(1, 4))
def test_repeated_maps_whole_heads(channels, unit):
    repeated = channels.expand_units(unit)

    assert (repeated.old_size, repeated.new_size) == (
        channels.old_size * unit,
        channels.new_size * unit,
    )
    for head, source in enumerate(channels.source.tolist()):
        rows = repeated.source[head * unit : (head + 1) * unit].tolist()
        expected = [source * unit + c if source != FILLER else FILLER for c in range(unit)]
        assert rows == expected
        assert (repeated.shares[head * unit : (head + 1) * unit] == channels.shares[head]).all()


@given(st.integers(1, 9), st.integers(0, 30))
def test_round_robin_copies_differ_by_one_at_most(old_size, more):
    copies = ChannelMap.round_robin(old_size, old_size + more).copy_counts()

    assert copies.max() - copies.min() <= 1


@given(st.integers(1, 9), st.integers(0, 30))
def test_tiled_copies_are_all_equal(old_size, more):
    channels = ChannelMap.tiled(old_size, old_size + more)
    full = (old_size + more) // old_size

    assert channels.copy_counts().tolist() == [full] * (full * old_size) + [0] * (more % old_size)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 12))
def test_a_copied_query_head_reads_a_copy_of_its_own_key_value_head(kv_heads, group, more):
    config = ModelConfig(n_heads=kv_heads * group, n_kv_heads=kv_heads)
    new_heads = config.n_heads + more
    hypothesis.assume(not (new_heads % group and new_heads % kv_heads))  # refused: test_refusals

    queries, key_values = map_heads(config, new_heads, ("n_heads", new_heads))

    assert queries.new_size == new_heads
    new_group, remainder = divmod(new_heads, key_values.new_size)
    assert remainder == 0
    for head, source in enumerate(queries.source.tolist()):
        assert key_values.source[head // new_group] == source // group


@pytest.mark.parametrize("size", [4096, 100_000])
def test_the_first_copy_is_the_first_however_many_threads_look_for_it(size):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        channels = ChannelMap.round_robin(size, 2 * size)
        first, second = channels.duplicate_pairs.T
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, torch.arange(size))
    assert torch.equal(second, first + size)
    assert channels.without_copies().is_append_only
