"""Format numbers for people to read."""

from __future__ import annotations

import math

MISSING = "–"
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def format_scaled(value: float | None, unit: str = "") -> str:
    """Format a number with an SI prefix: 1234567 -> '1.23 M'; None -> a dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    step = 0
    while abs(value) >= 999.5 and step < len(PREFIXES) - 1:
        value, step = value / 1000, step + 1
    digits = f"{value:.0f}" if step == 0 and float(value).is_integer() else f"{value:.3g}"
    return f"{digits} {PREFIXES[step]}{unit}".strip()


def format_loss(value: float | None) -> str:
    """Format a loss with four decimals; None -> a dash."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def format_jump(value: float | None) -> str:
    """Format a change of the loss by its magnitude: 0.00012 -> '+1.2e-04'."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:+.1e}" if value else "0"


def format_seconds(value: float | None) -> str:
    """Format a duration: 75 -> '1 min 15 s'."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 59.5:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def format_percent(value: float | None) -> str:
    """Format a fraction as a percentage with its sign: 0.25 -> '+25 %'."""
    return (
        MISSING if value is None or not math.isfinite(value) else f"{round(100 * value) or 0:+d} %"
    )
