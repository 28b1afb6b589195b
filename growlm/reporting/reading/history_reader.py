"""Reading training_history.jsonl, as far as it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growlm.reporting.reading.run_schema import (
    BoundarySchema,
    FinishedPhaseSchema,
    TrainingRowSchema,
    ValidationRowSchema,
    WarningSchema,
)
from growlm.storage.input_files import lexists, read_lines
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import parse_as

HistoryLine = dict[str, Any]
COUNTER_FIELDS = {"step": "global_step", "tokens": "tokens", "flops": "flops", "seconds": "time_s"}
"""Axis of the report -> field of a row."""


@dataclass
class History:
    """The lines of a history, by kind."""

    rows: list[HistoryLine] = field(default_factory=list)
    """Of training steps: with a phase, all counters, and a loss, which may be NaN."""
    validations: list[HistoryLine] = field(default_factory=list)
    warnings: list[HistoryLine] = field(default_factory=list)
    boundaries: list[HistoryLine] = field(default_factory=list)
    finished_phases: list[HistoryLine] = field(default_factory=list)
    """Phases that finished, with their samples."""
    num_unreadable: int = 0
    """Lines that are none that growlm writes: a run that was killed may leave half a line."""

    def last_counters(self) -> HistoryLine:
        """Counters at the end: of the last row or validation; zeros where there is none."""
        lines = [*self.rows[-1:], *self.validations[-1:]]
        start = dict.fromkeys(COUNTER_FIELDS.values(), 0)
        return max(lines, key=lambda line: (line["global_step"], line["time_s"]), default=start)


def read_history(path: Path, key: str = "argument", root: Path | None = None) -> History:
    """Read what is there.

    Args:
        path: Of the file; a missing one is an empty history.
        key: What the user calls it, for messages.
        root: The folder that a link must not lead out of; None for that of the file.

    Raises:
        UserError: If it cannot be read, or is larger than what is read of a history.
    """
    history = History()
    if lexists(path):
        for line in read_lines(path, key, root or path.parent):
            _add_line(history, line)
    return history


def _add_line(history: History, line: bytes) -> None:
    try:
        record = parse_json(line.decode(), allow_nan=True)
        event = record.get("event")
        kind, lines = {
            None: (TrainingRowSchema, history.rows),
            "validation": (ValidationRowSchema, history.validations),
            "warning": (WarningSchema, history.warnings),
            "boundary": (BoundarySchema, history.boundaries),
            "phase_finished": (FinishedPhaseSchema, history.finished_phases),
        }.get(event, (Any, []))
        lines.append(parse_as(kind, record))
    except (
        ValueError,
        AttributeError,
        TypeError,
    ):  # no JSON, no mapping, or an event that is no text
        history.num_unreadable += 1
