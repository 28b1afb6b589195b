"""Notice when the console has been silent for long, and print a line then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console, ConsoleRenderable, RenderHook

MAX_SILENCE_SECONDS = 10.0
"""Longest time without a line where the output is not a terminal."""


class Heartbeat(RenderHook):
    """Watch over a console that is not a terminal: every 10 seconds at most, there is a line.

    Any line counts, whoever prints it. A thread of its own looks whether one is due, since a single step or file
    may take long.

    Args:
        console: Console whose lines count.
        print_line: Function that prints a line on what is going on.
        clock: Function that returns the current time in seconds.
    """

    def __init__(
        self,
        console: Console,
        print_line: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._print_line, self._clock = print_line, clock
        self._last_line = clock()
        self._lock = threading.RLock()
        self._stop_request = threading.Event()
        self._thread: threading.Thread | None = None
        console.push_render_hook(self)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Note the time of a line that is being printed."""
        self._last_line = self._clock()
        return renderables

    @property
    def seconds_until_due(self) -> float:
        """Seconds until the next line is due, if nothing is printed before; not positive if one is due."""
        return self._last_line + MAX_SILENCE_SECONDS - self._clock()

    def print_if_due(self) -> None:
        """Print a line if there was none for too long."""
        with self._lock:
            if self.seconds_until_due <= 0:
                self._print_line()
                self._last_line = self._clock()

    def start(self) -> None:
        """Start looking in a thread, until `stop` is called."""
        if self._thread is None:
            self._stop_request.clear()
            self._thread = threading.Thread(target=self._run, name="growlm-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop_request.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while not self._stop_request.wait(max(0.0, self.seconds_until_due)):
            self.print_if_due()
