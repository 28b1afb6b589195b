"""How far a plan has come, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MIN_STEPS_FOR_PACE = 3
"""Of a phase, before its own pace is believed: the first steps are slow."""


class EtaEstimator:
    """Weighs steps by the planner's seconds and corrects these by what has been seen.

    Args:
        phases: As in plan.json, with `seconds`.
        now: The clock, in seconds.
    """

    def __init__(
        self, phases: Sequence[Mapping[str, Any]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._phase_start_seconds: dict[str, float] = {}
        self._step_seconds: dict[str, float] = {}
        total = 0.0
        for phase in phases:
            seconds = phase["seconds"]
            around = seconds["growth"] + seconds["validation"]
            self._step_seconds[phase["name"]] = seconds["step"]
            self._phase_start_seconds[phase["name"]] = total + around
            total += around + seconds["step"] * phase["steps"]
        self.planned_seconds = total
        self.planned_seconds_done = 0.0
        """In the planner's seconds."""
        self._phase = ""
        self._steps_seen = 0
        self._run_mark: tuple[float, float] | None = None
        self._phase_mark = (0.0, 0.0)

    def step_finished(self, phase: str, step: int) -> None:
        """After each step."""
        self.planned_seconds_done = (
            self._phase_start_seconds[phase] + step * self._step_seconds[phase]
        )
        mark = (self._clock(), self.planned_seconds_done)
        if phase != self._phase:
            self._phase, self._steps_seen, self._phase_mark = phase, 0, mark
        self._run_mark = self._run_mark or mark
        self._steps_seen += 1

    @property
    def fraction_done(self) -> float:
        """Of the plan that is done, 0 to 1."""
        return self.planned_seconds_done / self.planned_seconds if self.planned_seconds else 1.0

    @property
    def seconds_remaining(self) -> float:
        """At the pace of this phase, or while that is unknown of the run so far, or the planner's."""
        mark = self._phase_mark if self._steps_seen > MIN_STEPS_FOR_PACE else self._run_mark
        pace = 1.0
        if mark is not None and self.planned_seconds_done > mark[1]:
            pace = (self._clock() - mark[0]) / (self.planned_seconds_done - mark[1])
        return (self.planned_seconds - self.planned_seconds_done) * pace
