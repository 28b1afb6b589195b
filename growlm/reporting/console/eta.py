"""Estimate the progress and the remaining time of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MIN_STEPS_FOR_PACE = 3
"""Steps of a phase before its own pace is used: the first steps are slow."""


class EtaEstimator:
    """Remaining-time estimator: the planner's step times, corrected by the measured pace.

    Args:
        phases: Phases as in plan.json, with `seconds`.
        clock: Function that returns the current time in seconds.
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
            overhead = seconds["growth"] + seconds["validation"]
            self._step_seconds[phase["name"]] = seconds["step"]
            self._phase_start_seconds[phase["name"]] = total + overhead
            total += overhead + seconds["step"] * phase["steps"]
        self.planned_seconds = total
        self.planned_seconds_done = 0.0
        """Finished part of the plan, in the planner's seconds."""
        self._phase = ""
        self._steps_seen = 0
        self._run_mark: tuple[float, float] | None = None
        self._phase_mark = (0.0, 0.0)

    @property
    def phase_names(self) -> list[str]:
        """Names of the phases."""
        return list(self._step_seconds)

    def step_finished(self, phase: str, step: int) -> None:
        """Record that a step of a phase has finished."""
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
        """Finished fraction of the plan, 0 to 1."""
        return self.planned_seconds_done / self.planned_seconds if self.planned_seconds else 1.0

    @property
    def seconds_remaining(self) -> float:
        """Remaining seconds at the pace of this phase or, until that is known, of the run or the planner."""
        mark = self._phase_mark if self._steps_seen > MIN_STEPS_FOR_PACE else self._run_mark
        pace = 1.0
        if mark is not None and self.planned_seconds_done > mark[1]:
            pace = (self._clock() - mark[0]) / (self.planned_seconds_done - mark[1])
        return (self.planned_seconds - self.planned_seconds_done) * pace
