"""Format numbers for people to read, the same on the console, in plans and in reports; imports nothing heavy.

Every function returns a dash for None, and most of them for what is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps

MISSING = "–"
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
"""Prefixes of units: 1e9 bytes are a GB."""
COUNT_PREFIXES = ("", "k", "M", "B", "T")
"""Abbreviations of counts: 1e9 parameters are 1 B."""


def _or_dash(formatter: Callable[..., str]) -> Callable[..., str]:
    """Return the formatter, made to return a dash for None, NaN and infinities."""

    @wraps(formatter)
    def format_or_dash(value: float | None, *arguments: str) -> str:
        if value is None or not math.isfinite(value):
            return MISSING
        return formatter(value, *arguments)

    return format_or_dash


@_or_dash
def format_count(value: float) -> str:
    """Format a number of things exactly: 1234567 -> '1,234,567'."""
    return f"{value:,.0f}"


@_or_dash
def format_large_count(value: float) -> str:
    """Format a number of parameters or tokens with three digits: 1234567890 -> '1.23 B'."""
    return _scale(value, COUNT_PREFIXES)


@_or_dash
def format_scaled(value: float, unit: str = "") -> str:
    """Format a quantity with an SI prefix and three digits: 1234567 -> '1.23 M'."""
    gap = "" if abs(value) >= 999.5 else " "  # the unit follows its prefix without one
    return f"{_scale(value, PREFIXES)}{gap}{unit}".strip()


def format_bytes(value: float | None) -> str:
    """Format a size in bytes: 200000000 -> '200 MB'."""
    return format_scaled(value, "B")


def format_flops(value: float | None) -> str:
    """Format a number of floating-point operations: 1.94e12 -> '1.94 TFLOP'."""
    return format_scaled(value, "FLOP")


@_or_dash
def format_loss(value: float) -> str:
    """Format a loss, bits per byte, perplexity or similarity with four decimals: 2.34567 -> '2.3457'."""
    return f"{value:.4f}"


@_or_dash
def format_probe_loss(value: float) -> str:
    """Format a loss of which tiny differences matter with six decimals: 2.3456789 -> '2.345679'."""
    return f"{value:.6f}"


@_or_dash
def format_ratio(value: float) -> str:
    """Format a ratio of two sizes with three digits: 3.5432 -> '3.54'."""
    return f"{value:.3g}"


def format_magnitude(value: float | None) -> str:
    """Format a number whose order of magnitude matters: 0.000123 -> '1.2e-04', 0.123 -> '0.12', 0.0 -> '0'.

    What is not finite is written out, since it decides: 'nan', 'inf'.
    """
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if 99.5 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 1e-3 <= abs(value) < 99.5 else f"{value:.1e}"


def format_jump(value: float | None) -> str:
    """Format a change of the loss with its sign: 0.000123 -> '+1.2e-04', 0.0 -> '0'."""
    return f"{'+' if value and value > 0 else ''}{format_magnitude(value)}"


@_or_dash
def format_learning_rate(value: float) -> str:
    """Format a learning rate with three digits: 0.0003 -> '0.0003', 0.000012345 -> '1.23e-05'."""
    return f"{value:.3g}"


@_or_dash
def format_seconds(value: float) -> str:
    """Format a duration: 0.085 -> '85 ms', 4.24 -> '4.2 s', 60 -> '1 min 0 s', 25500 -> '7 h 5 min'."""
    if value <= 0:
        return "0 s"
    if value < 0.00995:
        return f"{1000 * value:.1f} ms" if value >= 0.00005 else "< 0.1 ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


@_or_dash
def format_share(value: float) -> str:
    """Format a part of a whole as a percentage: 0.374 -> '37 %'."""
    return f"{100 * value:.0f} %"


@_or_dash
def format_fine_share(value: float) -> str:
    """Format a small part of a whole as a percentage with one decimal: 0.0123 -> '1.2 %'."""
    return f"{100 * value:.1f} %"


@_or_dash
def format_percent(value: float) -> str:
    """Format a relative change as a percentage with its sign: 0.25 -> '+25 %'."""
    return f"{round(100 * value) or 0:+d} %"


def _scale(value: float, prefixes: Sequence[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    is_whole = step == 0 and float(value).is_integer()
    digits = f"{value:,.0f}" if is_whole or abs(value) >= 999.5 else f"{value:.3g}"
    return f"{digits} {prefixes[step]}".strip()
