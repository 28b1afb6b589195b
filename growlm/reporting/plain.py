"""The console that commands print to; imports nothing heavy."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 100
"""Columns where there is no terminal to ask."""


def plain_console() -> Console:
    """Standard output: a terminal as wide as it is, anything else 100 columns."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
