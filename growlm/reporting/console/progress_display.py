"""Display the progress of a run: bars on a terminal, a line every 10 seconds at most elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from growlm.reporting.console.eta import EtaEstimator
from growlm.reporting.console.heartbeat import MAX_SILENCE_SECONDS, Heartbeat
from growlm.reporting.records import HistoryRow
from growlm.runtime.number_format import (
    format_count,
    format_learning_rate,
    format_loss,
    format_seconds,
    format_share,
)

MAX_BAR_WIDTH = 40
NOTE_WIDTH = 36
"""Columns for the indentation, the gaps and the text after a bar."""


@dataclass(frozen=True)
class _Step:
    """Last step that has finished."""

    phase: str
    step: int
    num_steps: int
    seconds: float
    """Time on the clock when it finished."""


class ProgressDisplay:
    """Progress bar of the current task, with one for the whole plan above it; lines where there is no terminal.

    Args:
        console: Console to print to.
        clock: Function that returns the current time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self.heartbeat: Heartbeat | None = None
        """What prints a line where there would be none for long; None on a terminal, which has bars."""
        if not (console.is_terminal or console.quiet):
            self.heartbeat = Heartbeat(console, self._print_activity, clock)
        self._eta: EtaEstimator | None = None
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._task = self._note = ""
        self._task_start = clock()
        self._loss: float | None = None
        self._loss_step = 0
        self._step: _Step | None = None
        self._activity, self._activity_start = "starting", clock()

    def set_plan(self, phases: Sequence[Mapping[str, Any]]) -> None:
        """Set the phases as in plan.json, from which the remaining time is estimated."""
        self._eta = EtaEstimator(phases)

    def watch(self) -> None:
        """Begin to print lines where there would be none for long, until `close`."""
        if self.heartbeat is not None:
            self.heartbeat.start()

    def begin(self, activity: str) -> None:
        """Remove the bars, and say what goes on now if no line comes for long."""
        self.stop()
        self._activity, self._activity_start, self._step = activity, self._clock(), None

    def show_task(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Show progress of a task other than training.

        Args:
            name: Name of the task.
            done: Units done so far.
            total: Units in total; None if unknown. The task has ended when all are done.
            note: Text to show in place of the numbers.
        """
        if self.heartbeat is None:
            self._show_bar(name, name, done, total, note)
            self._task = name
            return
        if name != self._task:
            self._task, self._task_start = name, self._clock()
            self.console.print(f"  {name} ...", markup=False, soft_wrap=True)
        self._note = note
        self.heartbeat.print_if_due()
        if total and done >= total:
            self._task = ""
            self._activity_start = self._clock()

    def show_step(
        self, phase: str, step: int, num_steps: int, loss: float | None, row: HistoryRow | None
    ) -> None:
        """Show that a training step has finished.

        Args:
            phase: Name of the phase.
            step: Number of the step.
            num_steps: Number of steps of the phase.
            loss: Loss of the step; None if it is not known.
            row: Row of the history for this step; None if there is none.
        """
        if self._eta is not None:
            self._eta.step_finished(phase, step)
        if loss is not None or step == 1:
            self._loss, self._loss_step = loss, step
        if self.heartbeat is None:
            self._update_step_bars(phase, step, num_steps)
            return
        self._step = _Step(phase, step, num_steps, self._clock())
        self._task = ""
        if row is None:
            self.heartbeat.print_if_due()
        elif step in (1, num_steps) or self.heartbeat.seconds_until_due <= 0:
            self._print_row(row)

    def print_line(self, line: str) -> None:
        """Print a line with markup above the bars."""
        (self._bars.console if self._bars else self.console).print(line, soft_wrap=True)

    def stop(self) -> None:
        """Remove the bars from the terminal."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task, self._ids = None, "", {}

    def close(self) -> None:
        """Remove the bars, and print no more lines."""
        self.stop()
        if self.heartbeat is not None:
            self.heartbeat.stop()

    def _print_activity(self) -> None:
        """Print a line on what is going on, because nothing else was printed for long."""
        now = self._clock()
        if self._task:
            note, start = self._note or "not finished yet", self._task_start
            parts = [f"{self._task}: {note}", f"{format_seconds(now - start)} so far"]
        elif self._step is not None:
            parts = self._describe_step(self._step)
        else:
            parts = [f"{self._activity}, {format_seconds(now - self._activity_start)} so far"]
        self.console.print("  " + ", ".join(parts), markup=False, soft_wrap=True)

    def _describe_step(self, last: _Step) -> list[str]:
        parts = [f"{last.phase} step {last.step:,} of {last.num_steps:,}"]
        if self._loss is not None:
            at = "" if self._loss_step == last.step else f" at step {self._loss_step:,}"
            parts.append(f"loss {format_loss(self._loss)}{at}")
        since = self._clock() - last.seconds
        if since >= MAX_SILENCE_SECONDS:
            parts.append(f"finished {format_seconds(since)} ago")
        return [*parts, *self._describe_remaining()]

    def _print_row(self, row: HistoryRow) -> None:
        """Print a history row on one line, without the learning rate where that is too wide."""
        parts = [
            f"  {row['phase']} step {row['step']:>5,}",
            f"loss {format_loss(row['loss'])}",
            f"lr {format_learning_rate(row['lr'])}",
            f"{format_count(row['tokens_per_second'])} tokens/s",
            ", ".join(self._describe_remaining()),
        ]
        if Text("  ".join(parts)).cell_len > self.console.width:
            parts.pop(2)
        self.console.print("  ".join(parts).rstrip(), markup=False, soft_wrap=True)

    def _describe_remaining(self) -> list[str]:
        if self._eta is None:
            return []
        share = format_share(self._eta.fraction_done)
        if self._eta.fraction_done >= 1:
            return [share]
        seconds = self._eta.seconds_remaining
        return [share, f"{format_seconds(seconds) if seconds >= 1 else '< 1 s'} left"]

    def _update_step_bars(self, phase: str, step: int, num_steps: int) -> None:
        shown = "" if self._loss is None else f", loss {format_loss(self._loss)}"
        if self._eta is not None:
            done = round(1000 * self._eta.fraction_done)
            self._update_bar("plan", "plan", done, 1000, ", ".join(self._describe_remaining()))
        note = f"{step:,} of {num_steps:,}{shown}"
        self._show_bar("phase", phase, step, num_steps, note)

    def _show_bar(self, name: str, text: str, done: int, total: int | None, note: str = "") -> None:
        if name not in self._ids and not ("plan" in self._ids and name == "phase"):
            self.stop()
        self._update_bar(
            name, text, done, total, note or (f"{done:,} of {total:,}" if total else "")
        )

    def _update_bar(self, name: str, text: str, done: int, total: int | None, note: str) -> None:
        if self._bars is None:
            names = [text, *(self._eta.phase_names if self._eta else ())]
            rest = self.console.width - NOTE_WIDTH - max(map(cell_len, names))
            width = max(4, min(MAX_BAR_WIDTH, rest))
            # Names and numbers are folded where there is no room, and never cut.
            columns = (
                TextColumn("  {task.description}", markup=False, table_column=_folded()),
                BarColumn(width),
                TextColumn("{task.fields[note]}", markup=False, table_column=_folded()),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        if name not in self._ids:
            self._ids[name] = self._bars.add_task(text, total=total, note=note)
        self._bars.update(self._ids[name], completed=done, total=total, description=text, note=note)


def _folded() -> Column:
    return Column(overflow="fold")
