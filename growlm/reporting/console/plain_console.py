"""The console that commands print to; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from growlm.runtime.escaping import escape_unprintable

NON_TERMINAL_WIDTH = 100
"""Columns where there is no terminal to ask."""


def make_stdout_console(quiet: bool = False) -> Console:
    """Standard output: a terminal as wide as it is, anything else 100 columns; or nothing at all."""
    return _make_console(stderr=False, quiet=quiet)


def make_stderr_console() -> Console:
    """Standard error, for commands whose standard output is the result."""
    return _make_console(stderr=True)


def _make_console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = NON_TERMINAL_WIDTH
    console.push_render_hook(_ControlCharacterEscaper())
    return console


class _ControlCharacterEscaper(RenderHook):
    """Show control characters in whatever is printed as escapes: names and messages may come from a file."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap what is about to be printed."""
        return [_Escaped(renderable) for renderable in renderables]


@dataclass(frozen=True)
class _Escaped:
    """Something to print, without control characters of its own; the console's own ones stay."""

    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.renderable, options):
            text, style, control = segment
            yield segment if control else Segment(escape_unprintable(text), style)
