"""A bar for bytes written: moving on a terminal, a line at every quarter elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class ByteBar:
    """Use as a context; call `update`.

    Args:
        console: Where to.
        task: What is being done.
    """

    def __init__(self, console: Console, task: str) -> None:
        self.console, self.task = console, task
        self.total = 0
        self._quarter = 0
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._id = self._bar.add_task(task)

    def __enter__(self) -> ByteBar:
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
        """`done` of `total` bytes."""
        self.total = total
        self._bar.update(self._id, completed=done, total=total)
        quarter = 4 * done // total
        if not self.console.is_terminal and quarter > self._quarter:
            self.console.print(f"  {self.task}: {decimal(done)} of {decimal(total)}")
        self._quarter = quarter
