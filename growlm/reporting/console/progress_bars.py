"""Show progress bars for long tasks: moving on a terminal, a line at every quarter elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from growlm.runtime.number_format import format_bytes


class CountProgressBar:
    """Progress bar for counted items; use as a context manager and call `update`.

    Args:
        console: Console to print to.
        task: Description of the task.
        unit: Name of the counted items.
        quiet_seconds: Seconds before the first line is printed without a terminal; short tasks print none.
    """

    def __init__(self, console: Console, task: str, unit: str, quiet_seconds: float = 5.0) -> None:
        self.console, self.task, self.unit = console, task, unit
        self.total = 0
        self._quiet_until = time.monotonic() + quiet_seconds
        self._quarter = 0
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            self._make_column(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._id = self._bar.add_task(task)

    def _make_column(self) -> ProgressColumn:
        return MofNCompleteColumn()

    def _format_progress(self, done: int, total: int) -> str:
        return f"{done:,} of {total:,} {self.unit}"

    def __enter__(self) -> CountProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` items are finished."""
        self.total = total
        self._bar.update(self._id, completed=done, total=total)
        quarter = 4 * done // total
        should_print = not self.console.is_terminal and time.monotonic() >= self._quiet_until
        if should_print and quarter > self._quarter:
            self.console.print(f"  {self.task}: {self._format_progress(done, total)}")
        self._quarter = quarter


class ByteProgressBar(CountProgressBar):
    """Progress bar for a number of bytes.

    Args:
        console: Console to print to.
        task: Description of the task.
    """

    def __init__(self, console: Console, task: str) -> None:
        super().__init__(console, task, "bytes", quiet_seconds=0.0)

    def _make_column(self) -> ProgressColumn:
        return DownloadColumn()

    def _format_progress(self, done: int, total: int) -> str:
        return f"{format_bytes(done)} of {format_bytes(total)}"
