"""Create the consoles that commands print to, without importing torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from growlm.runtime.escaping import escape_unprintable

NON_TERMINAL_WIDTH = 100
"""Console width in columns if the output is not a terminal, unless `COLUMNS` is set."""
MIN_WIDTH, MAX_WIDTH = 40, 1000
VERBOSE_VARIABLE = "GROWLM_VERBOSE"
"""Environment variable that is `1` for `growlm train --verbose`, also in the processes that it starts."""


def is_verbose() -> bool:
    """Return whether the command was asked for more detail."""
    return os.environ.get(VERBOSE_VARIABLE) == "1"


@contextmanager
def verbose_output(verbose: bool) -> Iterator[None]:
    """Make `is_verbose` true for the duration of the block, here and in processes that are started."""
    before = os.environ.get(VERBOSE_VARIABLE)
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    try:
        yield
    finally:
        if verbose:
            os.environ.pop(VERBOSE_VARIABLE)
            if before is not None:
                os.environ[VERBOSE_VARIABLE] = before


def make_stdout_console(quiet: bool = False) -> Console:
    """Return a console on standard output; `quiet` suppresses all output.

    It is as wide as the terminal; elsewhere `COLUMNS` wide if that is set, or `NON_TERMINAL_WIDTH`.
    """
    return _make_console(stderr=False, quiet=quiet)


def make_stderr_console() -> Console:
    """Return a console on standard error, for commands whose standard output is the result."""
    return _make_console(stderr=True)


def _make_console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isascii() and columns.isdecimal() else NON_TERMINAL_WIDTH
        console.width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    console.push_render_hook(_ControlCharacterEscaper())
    return console


class _ControlCharacterEscaper(RenderHook):
    """Render hook that escapes control characters, since names and messages may come from untrusted files."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap the renderables that are about to be printed."""
        return [_Escaped(renderable) for renderable in renderables]


@dataclass(frozen=True)
class _Escaped:
    """Renderable whose own control characters are escaped; those of the console are kept."""

    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.renderable, options):
            text, style, control = segment
            yield segment if control else Segment(escape_unprintable(text), style)
