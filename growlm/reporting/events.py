"""What a run tells of itself while it goes on; those who care override what they need."""

from __future__ import annotations

from collections.abc import Callable

from growlm.reporting.records import (
    BoundaryRecord,
    HistoryRow,
    PhaseStart,
    PhaseSummary,
    ReusedPhases,
    RunSummary,
)


class RunListener:
    """Does nothing on every event."""

    def task_progress(self, task: str, done: int, total: int | None, note: str = "") -> None:
        """Something that takes a while: `done` of `total` (None: unknown); `note` says more."""

    def phase_started(self, start: PhaseStart) -> None:
        """Before the first step of a phase, after its boundary."""

    def run_resumed(self, phase: str, step: int, steps: int) -> None:
        """The run goes on after so many steps of a phase."""

    def phases_reused(self, reused: ReusedPhases) -> None:
        """The run begins after phases that another one has trained."""

    def message_logged(self, text: str) -> None:
        """Something that a person may want to know."""

    def boundary_passed(self, boundary: BoundaryRecord) -> None:
        """A model has grown and was checked; it may have failed (`boundary.report`)."""

    def step_finished(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """After each optimizer step; `loss` on those that make a row."""

    def row_logged(self, row: HistoryRow) -> None:
        """A row of the history."""

    def validation_finished(self, row: HistoryRow) -> None:
        """A validation loss, with the same counters as a row."""

    def warning_logged(self, row: HistoryRow, text: str) -> None:
        """Something goes wrong, in words; with the same counters as a row."""

    def phase_finished(self, summary: PhaseSummary) -> None:
        """After a phase's validation and sample."""

    def run_finished(self, summary: RunSummary) -> None:
        """After the last phase."""

    def close(self, failed: bool) -> None:
        """Always called at the end; `failed` if the run did not finish."""


class BroadcastListener(RunListener):
    """Passes every event on to several listeners, in order."""

    def __init__(self, listeners: list[RunListener]) -> None:
        self.listeners = listeners


def _forward_event(event: str) -> Callable[..., None]:
    def pass_on(self: BroadcastListener, *arguments: object) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)

    return pass_on


for _event in [name for name in vars(RunListener) if not name.startswith("_")]:
    setattr(BroadcastListener, _event, _forward_event(_event))
