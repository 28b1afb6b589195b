"""Numbers drawn by blocks: their distribution, and what they depend on."""

import math

import pytest
import torch

from growlm.growth import GrowthRng
from growlm.growth import growth_rng as draws_module
from growlm.growth.growth_rng import ODD_INTEGER_STD, normal_quantiles


def drawn(x, dim, count, *, threads=None, key=(0, "up"), **options):
    """What `Draws.blocks` gives a tensor that is as large along `dim` as `count` says."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with GrowthRng(0) as draws:
            draws.draw_in_blocks(
                x, dim, count, "noise", key, lambda part, numbers, _: part.copy_(numbers), **options
            )
    finally:
        torch.set_num_threads(before)
    return x


@pytest.mark.parametrize("odd", [False, True])
def test_blocks_do_not_depend_on_the_threads_that_draw_them(monkeypatch, odd):
    monkeypatch.setattr(draws_module, "DRAW_BLOCK_ENTRIES", 12)

    one, two, five = (
        drawn(torch.zeros(23, 4), 1, 4, threads=threads, stacked=False, odd_integers=odd)
        for threads in (1, 2, 5)
    )

    assert one.all()
    assert torch.equal(one, two)
    assert torch.equal(one, five)
    assert len(one.unique(dim=0)) == 23


def test_members_of_a_stack_have_draws_of_their_own(monkeypatch):
    """So a process that holds some of the experts draws what one with all of them would."""
    monkeypatch.setattr(draws_module, "DRAW_BLOCK_ENTRIES", 12)

    two, five = (drawn(torch.zeros(n, 6, 4), 2, 4, stacked=True) for n in (2, 5))

    assert torch.equal(two, five[:2])
    assert len(five.flatten(0, 1).unique(dim=0)) == 30


def test_no_block_is_larger_than_said_and_their_number_is_even(monkeypatch):
    monkeypatch.setattr(draws_module, "DRAW_BLOCK_ENTRIES", 40)
    sizes = []
    with GrowthRng(0) as draws:
        draws.draw_in_blocks(
            torch.zeros(30, 8),
            1,
            4,
            "",
            (0, ""),
            lambda _, n, __: sizes.append(n.numel()),
            stacked=False,
        )
    assert len(sizes) == 4
    assert sum(sizes) == 30 * 4
    assert max(sizes) <= 40


def test_odd_numbers_are_all_as_likely():
    numbers = drawn(torch.empty(1024, 1024), 1, 1024, stacked=False, odd_integers=True)

    levels, counts = numbers.unique(return_counts=True)

    assert levels.tolist() == list(range(-127, 128, 2))
    # Of 128 counts around 8,192, five deviations
    assert (counts - 8192).abs().max() < 5 * 8192**0.5
    assert levels.std(correction=0).item() == pytest.approx(ODD_INTEGER_STD, rel=1e-6)
    assert abs(numbers.double().mean().item()) < 5 * ODD_INTEGER_STD / 1024


def test_table_of_the_normal_distribution():
    table = normal_quantiles().double()

    assert (table.diff() > 0).all()
    assert torch.equal(table, -table.flip(0))
    assert table.square().mean().item() == pytest.approx(1.0, abs=1e-7)
    assert table.pow(4).mean().item() == pytest.approx(3.0, abs=1e-3)
    assert table.pow(6).mean().item() == pytest.approx(15.0, abs=0.05)


def test_normal_numbers_are_normal():
    size = 2**20
    numbers = drawn(torch.empty(1024, 1024), 1, 1024, stacked=False).flatten().double()

    assert abs(numbers.mean().item()) < 5 / size**0.5
    assert abs(numbers.var().item() - 1) < 5 * (2 / size) ** 0.5
    assert abs(numbers.pow(3).mean().item()) < 5 * (15 / size) ** 0.5
    assert abs(numbers.pow(4).mean().item() - 3) < 5 * (96 / size) ** 0.5
    # Kolmogorov and Smirnov: 2.3 is passed once in 20,000 times.
    below = torch.special.ndtr(numbers.sort().values)
    steps = torch.arange(size, dtype=torch.float64) / size
    assert (below - steps).abs().max().item() < 2.3 / math.sqrt(size)


@pytest.mark.parametrize("odd", [False, True])
def test_neighbours_and_blocks_are_independent(odd):
    numbers = drawn(torch.empty(1024, 1024), 1, 1024, stacked=False, odd_integers=odd)
    others = drawn(
        torch.empty(1024, 1024), 1, 1024, stacked=False, odd_integers=odd, key=(0, "down")
    )
    flat = numbers.flatten()

    for first, second in (
        (flat[:-1], flat[1:]),
        (flat[: 2**19], flat[2**19 :]),
        (flat, others.flatten()),
    ):
        correlation = torch.corrcoef(torch.stack((first, second)))[0, 1].item()
        assert abs(correlation) < 5 / len(first) ** 0.5
