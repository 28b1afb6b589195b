"""Long histories as curves: smoothed, and with fewer points that look the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from growlm.reporting.reading.run_schema import MAX_MAGNITUDE

Loss = float | None

MIN_SMOOTHING_RADIUS = 2
ROWS_PER_RADIUS = 100
"""A smoothed loss reaches as far to either side as the 100th part of the rows."""


def finite_or_none(value: object) -> float | None:
    """A number that can be drawn and added up; None for NaN, what is too large, and what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -MAX_MAGNITUDE < value < MAX_MAGNITUDE else None


def smoothing_radius(num_rows: int) -> int:
    """Rows on either side that a smoothed loss is the mean of, beside its own."""
    return max(MIN_SMOOTHING_RADIUS, num_rows // ROWS_PER_RADIUS)


def smooth_losses(
    losses: Sequence[Loss], radius: int, phase_starts: Sequence[int] = (0,)
) -> list[Loss]:
    """The mean of each loss and its neighbours in its phase; at its ends of fewer, as many on either side.

    Means of what came before alone would lag behind a falling loss, and means over a boundary show a step there:
    its two rows are neighbours in time, their neighbourhoods are not.

    Args:
        losses: None where there is no finite one; these are left out of the means.
        rows: On either side.
        starts: Index of each phase's first row.

    Returns:
        As many; None where the neighbourhood has no finite loss.
    """
    known = [loss or 0.0 for loss in losses]
    counts = [0, *accumulate(loss is not None for loss in losses)]
    smoothed: list[Loss] = []
    phase_starts = phase_starts or (0,)
    ends = [*phase_starts[1:], len(losses)]
    for begin, stop in zip(phase_starts, ends, strict=True):
        for index in range(begin, stop):
            half = min(radius, index - begin, stop - 1 - index)
            first, end = index - half, index + half + 1
            count = counts[end] - counts[first]
            # Summed anew each time: a difference of running sums never recovers from one huge loss.
            smoothed.append(sum(known[first:end]) / count if count else None)
    return smoothed


def downsample(
    losses: Sequence[Loss], phase_starts: Sequence[int], max_points: int, boundary_margin: int
) -> list[int]:
    """Rows to draw: the lowest and highest of equal stretches, and everything near a phase's beginning.

    Args:
        losses: Of all rows.
        starts: Index of each phase's first row.
        most: Rows to keep, about.
        keep: Rows on either side of a beginning that are kept all.

    Returns:
        Indices in order; with them the first and last row of each phase.
    """
    if len(losses) <= max_points:
        return list(range(len(losses)))
    kept = {0, len(losses) - 1}
    for start in phase_starts:
        kept.update((start - 1, start) if start else (start,))
        if start:
            kept.update(
                range(max(0, start - boundary_margin), min(len(losses), start + boundary_margin))
            )
    stretch = max(2, math.ceil(2 * len(losses) / max_points))
    for first in range(0, len(losses), stretch):
        rows = range(first, min(first + stretch, len(losses)))
        known = [row for row in rows if losses[row] is not None]
        if not known:
            kept.add(first)
            continue
        kept.add(min(known, key=lambda row: losses[row] or 0.0))
        kept.add(max(known, key=lambda row: losses[row] or 0.0))
        # A gap stays a gap.
        kept.update(row for row in rows if losses[row] is None)
    return sorted(kept)


def round_significant(value: float | None, digits: int = 6) -> float | None:
    """A number with so many significant digits, which is shorter as JSON."""
    if value is None or isinstance(value, int):
        return value
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
