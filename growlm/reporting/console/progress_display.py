"""What moves while something takes long: bars on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from growlm.reporting.console.eta import PlanClock
from growlm.reporting.console.plan_table import duration
from growlm.reporting.records import Row

QUIET = 10.0
"""Seconds between plain lines of one phase."""


class ProgressDisplay:
    """A bar for what is being done, and above it one for the whole plan.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._clock: PlanClock | None = None
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._task = ""
        self._loss: float | None = None
        self._last_line = self._last_note = -QUIET

    def expect(self, phases: Sequence[Mapping[str, Any]]) -> None:
        """The plan, as in plan.json."""
        self._clock = PlanClock(phases)

    def task(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Something beside training: `done` of `total` (None: unknown); a note is shown in their place."""
        now = time.monotonic()
        if self.console.is_terminal:
            self._show(name, name, done, total, note)
        elif name != self._task:
            self.console.print(f"  {name} ...", markup=False)
            self._last_note = now
        elif note and now - self._last_note >= QUIET:
            self.console.print(f"  {name}: {note}", markup=False)
            self._last_note = now
        self._task = name

    def step(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """A step of training."""
        if self._clock is not None:
            self._clock.step_finished(phase, step)
        if not self.console.is_terminal:
            return
        if loss is not None or step == 1:
            self._loss = loss
        shown = "" if self._loss is None else f"  loss {self._loss:.4f}"
        if self._clock is not None:
            self._bar("plan", "plan", round(1000 * self._clock.share), 1000, self._left())
        self._show("phase", f"{phase}{shown}", step, steps)

    def row(self, row: Row, steps: int) -> None:
        """A row of the history: a line where there are no bars, if it is the last of a phase or time for one."""
        now = time.monotonic()
        is_end = row["step"] in (1, steps)
        if self.console.is_terminal or not (is_end or now - self._last_line >= QUIET):
            return
        self._last_line = now
        left = f"  {self._left()}" if self._clock else ""
        self.console.print(
            f"  {row['phase']} step {row['step']:>5}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"{row['tokens_per_second']:,.0f} tokens/s{left}",
            markup=False,
        )

    def say(self, line: str) -> None:
        """A line above the bars."""
        (self._bars.console if self._bars else self.console).print(line)

    def stop(self) -> None:
        """Leave the terminal in order."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task, self._ids = None, "", {}

    def _left(self) -> str:
        assert self._clock is not None
        share = f"{100 * self._clock.share:.0f} %"
        if self._clock.share >= 1:
            return share
        return f"{share}, {duration(self._clock.seconds_left)} left"

    def _show(self, name: str, text: str, done: int, total: int | None, note: str = "") -> None:
        if name not in self._ids and not ("plan" in self._ids and name == "phase"):
            self.stop()
        self._bar(name, text, done, total, note or (f"{done}/{total}" if total else ""))

    def _bar(self, name: str, text: str, done: int, total: int | None, note: str) -> None:
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
