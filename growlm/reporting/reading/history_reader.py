"""Read training_history.jsonl, including that of an unfinished or killed run."""

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
"""Axes of the report and the counter fields of a history row that they show."""


@dataclass
class History:
    """Lines of a training history, grouped by kind."""

    rows: list[HistoryLine] = field(default_factory=list)
    """Training steps, each with a phase, all counters and a loss, which may be NaN."""
    validations: list[HistoryLine] = field(default_factory=list)
    warnings: list[HistoryLine] = field(default_factory=list)
    boundaries: list[HistoryLine] = field(default_factory=list)
    finished_phases: list[HistoryLine] = field(default_factory=list)
    """Finished phases, with their samples."""
    num_unreadable: int = 0
    """Number of lines that growlm did not write in full: a killed run may leave half a line."""

    def last_counters(self) -> HistoryLine:
        """Return the counters of the last row or validation; zeros if there is none."""
        lines = [*self.rows[-1:], *self.validations[-1:]]
        start = dict.fromkeys(COUNTER_FIELDS.values(), 0)
        return max(lines, key=lambda line: (line["global_step"], line["time_s"]), default=start)


def read_history(path: Path, key: str = "argument", root: Path | None = None) -> History:
    """Read a training history; a missing file gives an empty history.

    Args:
        path: File to read.
        key: Setting or argument that names the file, for error messages.
        root: Folder that symbolic links must not leave; None for the folder of the file.

    Raises:
        UserError: If the file cannot be read or exceeds the size limit.
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
    except (ValueError, AttributeError, TypeError):
        # The line is not JSON, not a mapping, or its event is not a string.
        history.num_unreadable += 1
