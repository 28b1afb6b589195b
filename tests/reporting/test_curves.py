"""Smoothing and thinning of long histories."""

import pytest

from growlm.reporting.html.curves import (
    downsample,
    finite_or_none,
    round_significant,
    smooth_losses,
)


def test_smoothing_is_the_mean_of_both_sides():
    assert smooth_losses([4.0, 2.0, 6.0, 1.0, 7.0], 1) == [
        4.0,
        4.0,
        3.0,
        pytest.approx(14 / 3),
        7.0,
    ]
    assert smooth_losses([4.0, 2.0, 6.0, 1.0, 7.0], 9)[2] == 4.0


def test_smoothing_does_not_lag():
    falling = [float(-index) for index in range(50)]
    assert smooth_losses(falling, 7) == pytest.approx(falling)


def test_smoothing_has_no_kink_where_rows_become_dense():
    steps = [*range(0, 100, 10), *range(91, 121), *range(130, 200, 10)]
    falling = [5 - 0.01 * step for step in steps]
    smoothed = smooth_losses(falling, 2, steps=steps)
    assert max(abs(one - two) for one, two in zip(falling, smoothed, strict=True)) < 0.03
    uneven = smooth_losses(falling, 2)
    assert max(abs(one - two) for one, two in zip(falling, uneven, strict=True)) > 0.05


def test_smoothing_leaves_out_what_is_not_finite():
    assert smooth_losses([1.0, None, 3.0, None, None], 1) == [1.0, 2.0, 3.0, 3.0, None]


def test_smoothing_recovers_from_a_huge_loss():
    assert smooth_losses([1.0, 1e30, 1.0, 1.0, 1.0, 1.0], 1)[-2] == 1.0


def test_thinning_keeps_ends_extremes_and_boundaries():
    losses = [float(index % 7) for index in range(10_000)]
    losses[1234], losses[4321] = 100.0, -100.0
    starts = [0, 5000]
    kept = downsample(losses, starts, max_points=1000, boundary_margin=20)
    assert kept == sorted(set(kept))
    assert {0, 1234, 4321, 9999, *range(4980, 5020)} <= set(kept)
    assert len(kept) < 1100


def test_short_histories_stay_whole():
    assert downsample([1.0] * 10, [0], max_points=10, boundary_margin=1) == list(range(10))


def test_gaps_stay_gaps():
    losses = [None if index == 777 else 1.0 for index in range(5000)]
    assert 777 in downsample(losses, [0], max_points=100, boundary_margin=1)


def test_numbers_for_json():
    assert [finite_or_none(value) for value in (1, 2.5, float("nan"), "x", True)] == [
        1,
        2.5,
        None,
        None,
        None,
    ]
    assert round_significant(0.123456789) == 0.123457
    assert round_significant(1234567890.0) == 1234570000


def test_a_boundary_is_no_step_where_there_is_none():
    """Rows are dense around a boundary, and means over it would differ though the loss falls evenly."""
    steps = [*range(0, 100, 10), 99, *range(100, 200, 10)]
    losses = [5 - 0.01 * step for step in steps]
    smoothed = smooth_losses(losses, 2, [0, 11])
    assert smoothed[10] == losses[10]
    assert smoothed[11] == losses[11]
    assert smooth_losses([], 2, []) == []
