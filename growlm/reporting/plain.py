"""The console that commands print to; imports nothing heavy."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 100
"""Columns where there is no terminal to ask."""


def plain_console(quiet: bool = False) -> Console:
    """Standard output: a terminal as wide as it is, anything else 100 columns; or nothing at all."""
    return _console(stderr=False, quiet=quiet)


def notes_console() -> Console:
    """Standard error, for commands whose standard output is the result."""
    return _console(stderr=True)


def _console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
