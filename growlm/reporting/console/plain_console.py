"""Create the consoles that commands print to, without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from growlm.runtime.escaping import escape_unprintable

NON_TERMINAL_WIDTH = 100
"""Console width in columns if the output is not a terminal."""


def make_stdout_console(quiet: bool = False) -> Console:
    """Return a console on standard output; `quiet` suppresses all output.

    It is as wide as the terminal, or `NON_TERMINAL_WIDTH` columns elsewhere.
    """
    return _make_console(stderr=False, quiet=quiet)


def make_stderr_console() -> Console:
    """Return a console on standard error, for commands whose standard output is the result."""
    return _make_console(stderr=True)


def _make_console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = NON_TERMINAL_WIDTH
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
