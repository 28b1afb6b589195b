"""Display the progress of a run: bars on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from growlm.reporting.console.eta import EtaEstimator
from growlm.reporting.console.plan_table import format_duration
from growlm.reporting.records import HistoryRow

LINE_INTERVAL_SECONDS = 10.0
"""Seconds between plain lines of one phase."""


class ProgressDisplay:
    """Progress bar of the current task, with one for the whole plan above it.

    Args:
        console: Console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._eta: EtaEstimator | None = None
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._task = ""
        self._loss: float | None = None
        self._last_line = self._last_note = -LINE_INTERVAL_SECONDS

    def set_plan(self, phases: Sequence[Mapping[str, Any]]) -> None:
        """Set the phases as in plan.json, from which the remaining time is estimated."""
        self._eta = EtaEstimator(phases)

    def show_task(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Show progress of a task other than training.

        Args:
            name: Name of the task.
            done: Units done so far.
            total: Units in total; None if unknown.
            note: Text to show in place of the numbers.
        """
        now = time.monotonic()
        if self.console.is_terminal:
            self._show_bar(name, name, done, total, note)
        elif name != self._task:
            self.console.print(f"  {name} ...", markup=False)
            self._last_note = now
        elif note and now - self._last_note >= LINE_INTERVAL_SECONDS:
            self.console.print(f"  {name}: {note}", markup=False)
            self._last_note = now
        self._task = name

    def show_step(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """Show that a training step has finished."""
        if self._eta is not None:
            self._eta.step_finished(phase, step)
        if not self.console.is_terminal:
            return
        if loss is not None or step == 1:
            self._loss = loss
        shown = "" if self._loss is None else f"  loss {self._loss:.4f}"
        if self._eta is not None:
            self._update_bar(
                "plan",
                "plan",
                round(1000 * self._eta.fraction_done),
                1000,
                self._format_remaining(),
            )
        self._show_bar("phase", f"{phase}{shown}", step, steps)

    def show_row(self, row: HistoryRow, steps: int) -> None:
        """Print a history row if there are no bars and it is the first or last of a phase, or a line is due."""
        now = time.monotonic()
        is_first_or_last = row["step"] in (1, steps)
        if self.console.is_terminal or not (
            is_first_or_last or now - self._last_line >= LINE_INTERVAL_SECONDS
        ):
            return
        self._last_line = now
        remaining = f"  {self._format_remaining()}" if self._eta else ""
        self.console.print(
            f"  {row['phase']} step {row['step']:>5}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"{row['tokens_per_second']:,.0f} tokens/s{remaining}",
            markup=False,
        )

    def print_line(self, line: str) -> None:
        """Print a line above the bars."""
        (self._bars.console if self._bars else self.console).print(line)

    def stop(self) -> None:
        """Remove the bars from the terminal."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task, self._ids = None, "", {}

    def _format_remaining(self) -> str:
        assert self._eta is not None
        share = f"{100 * self._eta.fraction_done:.0f} %"
        if self._eta.fraction_done >= 1:
            return share
        return f"{share}, {format_duration(self._eta.seconds_remaining)} left"

    def _show_bar(self, name: str, text: str, done: int, total: int | None, note: str = "") -> None:
        if name not in self._ids and not ("plan" in self._ids and name == "phase"):
            self.stop()
        self._update_bar(name, text, done, total, note or (f"{done}/{total}" if total else ""))

    def _update_bar(self, name: str, text: str, done: int, total: int | None, note: str) -> None:
        if self._bars is None:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        if name not in self._ids:
            self._ids[name] = self._bars.add_task(text, total=total, note=note)
        self._bars.update(self._ids[name], completed=done, total=total, description=text, note=note)
