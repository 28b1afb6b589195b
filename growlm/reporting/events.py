"""Define the events that a run emits, and the listener classes that receive them."""

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
    """Base class for receivers of run events; every method does nothing, subclasses override what they need."""

    def task_progress(self, task: str, done: int, total: int | None, note: str = "") -> None:
        """Handle progress of a long task.

        Args:
            task: Name of the task.
            done: Units done so far.
            total: Units in total; None if unknown.
            note: Further details to show.
        """

    def phase_started(self, start: PhaseStart) -> None:
        """Handle the start of a phase: after its boundary, before its first step."""

    def run_resumed(self, phase: str, step: int, steps: int) -> None:
        """Handle the resumption of a run after `step` of `steps` steps of a phase."""

    def phases_reused(self, reused: ReusedPhases) -> None:
        """Handle the reuse of phases that another run has trained; this run starts after them."""

    def message_logged(self, text: str) -> None:
        """Handle a message for the user."""

    def growth_started(self, from_phase: str, to_phase: str) -> None:
        """Handle the start of a growth between two phases; `boundary_finished` follows unless it fails."""

    def boundary_finished(self, boundary: BoundaryRecord) -> None:
        """Handle a growth and its checks, which may have failed (see `boundary.report`)."""

    def boundary_evaluated(self, boundary: BoundaryRecord) -> None:
        """Handle what the evaluation sets measured before and after the last growth."""

    def step_finished(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """Handle the end of an optimizer step; `loss` is None on steps that are not logged."""

    def row_logged(self, row: HistoryRow) -> None:
        """Handle a new row of the training history."""

    def validation_finished(self, row: HistoryRow) -> None:
        """Handle a validation; `row` has the loss and the same counters as a history row."""

    def warning_logged(self, row: HistoryRow, text: str) -> None:
        """Handle a warning; `row` has the same counters as a history row."""

    def phase_finished(self, summary: PhaseSummary) -> None:
        """Handle the end of a phase, after its validation and sample."""

    def run_finished(self, summary: RunSummary) -> None:
        """Handle the end of the run, after the last phase."""

    def close(self, failed: bool) -> None:
        """Release resources; always called at the end, with `failed` if the run did not finish."""


class BroadcastListener(RunListener):
    """Listener that forwards every event to several listeners, in order.

    Args:
        listeners: Receivers of the events.
    """

    def __init__(self, listeners: list[RunListener]) -> None:
        self.listeners = listeners


def _forward_event(event: str) -> Callable[..., None]:
    def forward(self: BroadcastListener, *arguments: object) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)

    return forward


for _event in [name for name in vars(RunListener) if not name.startswith("_")]:
    setattr(BroadcastListener, _event, _forward_event(_event))
