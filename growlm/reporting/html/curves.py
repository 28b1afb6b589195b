"""Smooth and downsample loss curves for plotting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from growlm.reporting.reading.run_schema import MAX_MAGNITUDE

Loss = float | None

MIN_SMOOTHING_RADIUS = 2
ROWS_PER_RADIUS = 100
"""Number of rows in a history per row of smoothing radius: the radius is 1 % of the rows."""


def finite_or_none(value: object) -> float | None:
    """Return the value if it is a finite number that can be summed, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -MAX_MAGNITUDE < value < MAX_MAGNITUDE else None


def smoothing_radius(num_rows: int) -> int:
    """Return the number of rows on either side over which a loss is averaged."""
    return max(MIN_SMOOTHING_RADIUS, num_rows // ROWS_PER_RADIUS)


def smooth_losses(
    losses: Sequence[Loss],
    radius: int,
    phase_starts: Sequence[int] = (0,),
    steps: Sequence[float] | None = None,
) -> list[Loss]:
    """Return a centered moving average of the losses within each phase.

    Windows shrink symmetrically near the ends of a phase. A trailing average would lag behind a falling loss, and
    an average across a boundary would blur the step there.

    Args:
        losses: Loss of each row; None where it is not finite, which the averages ignore.
        radius: Rows on either side to average over.
        phase_starts: Index of each phase's first row.
        steps: Step of each row. Where rows are denser on one side, a window reaches as far on the other, so that
            the curve has no kink there. None for rows that are evenly spaced.

    Returns:
        One smoothed loss per row; None where the window has no finite loss.
    """
    known = [loss or 0.0 for loss in losses]
    counts = [0, *accumulate(loss is not None for loss in losses)]
    smoothed: list[Loss] = []
    phase_starts = phase_starts or (0,)
    ends = [*phase_starts[1:], len(losses)]
    for begin, stop in zip(phase_starts, ends, strict=True):
        for index in range(begin, stop):
            window_radius = min(radius, index - begin, stop - 1 - index)
            first, end = index - window_radius, index + window_radius + 1
            if steps is not None:
                reach = max(0, min(steps[index] - steps[first], steps[end - 1] - steps[index]))
                while steps[index] - steps[first] > reach:
                    first += 1
                while steps[end - 1] - steps[index] > reach:
                    end -= 1
            count = counts[end] - counts[first]
            # Summed per window: a difference of running sums loses all precision after one huge loss.
            smoothed.append(sum(known[first:end]) / count if count else None)
    return smoothed


def downsample(
    losses: Sequence[Loss], phase_starts: Sequence[int], max_points: int, boundary_margin: int
) -> list[int]:
    """Select the rows to plot: the minimum and maximum of equal intervals, and all rows near phase starts.

    Args:
        losses: Loss of each row; None where it is not finite.
        phase_starts: Index of each phase's first row.
        max_points: Approximate number of rows to keep.
        boundary_margin: Rows on either side of a phase start that are all kept.

    Returns:
        Indices in ascending order, including the first and last row of each phase.
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
    interval = max(2, math.ceil(2 * len(losses) / max_points))
    for first in range(0, len(losses), interval):
        rows = range(first, min(first + interval, len(losses)))
        known = [row for row in rows if losses[row] is not None]
        if not known:
            kept.add(first)
            continue
        kept.add(min(known, key=lambda row: losses[row] or 0.0))
        kept.add(max(known, key=lambda row: losses[row] or 0.0))
        # Rows without a finite loss are kept, so that gaps stay visible.
        kept.update(row for row in rows if losses[row] is None)
    return sorted(kept)


def round_significant(value: float | None, digits: int = 6) -> float | None:
    """Round a number to `digits` significant digits, which keeps the JSON short."""
    if value is None or isinstance(value, int):
        return value
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
