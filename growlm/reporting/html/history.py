"""Reading training_history.jsonl, as far as it was written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]
COUNTERS = {"step": "global_step", "tokens": "tokens", "flops": "flops", "seconds": "time_s"}
"""Axis of the report -> field of a row."""


@dataclass
class History:
    """The lines of a history, by kind."""

    rows: list[Line] = field(default_factory=list)
    """Of training steps: with a phase, all counters, and a loss, which may be NaN."""
    validations: list[Line] = field(default_factory=list)
    warnings: list[Line] = field(default_factory=list)
    boundaries: list[Line] = field(default_factory=list)
    finished: list[Line] = field(default_factory=list)
    """Phases that finished, with their samples."""
    unreadable: int = 0
    """Lines that are no JSON object of a known kind: a run that was killed may leave half a line."""

    def last(self) -> Line:
        """Counters at the end: of the last row or validation; zeros where there is none."""
        lines = [*self.rows[-1:], *self.validations[-1:]]
        start = dict.fromkeys(COUNTERS.values(), 0)
        return max(lines, key=lambda line: (line["global_step"], line["time_s"]), default=start)


def read_history(path: Path) -> History:
    """Read what is there.

    Args:
        path: Of the file; a missing one is an empty history.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return History()
    history = History()
    for line in lines:
        _add(history, line)
    return history


def _add(history: History, line: bytes) -> None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        history.unreadable += 1
        return
    event = record.get("event")
    if event is None and _is_row(record, "loss"):
        history.rows.append(record)
    elif event == "validation" and _is_row(record, "val_loss"):
        history.validations.append(record)
    elif event == "warning":
        history.warnings.append(record)
    elif event == "boundary":
        history.boundaries.append(record)
    elif event == "phase_finished":
        history.finished.append(record)
    elif event is None or event == "validation":
        history.unreadable += 1


def _is_row(record: Line, loss: str) -> bool:
    numbers = (*COUNTERS.values(), loss)
    return "phase" in record and all(isinstance(record.get(key), int | float) for key in numbers)
