"""Reading training_history.jsonl, as far as it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growlm.reporting.reading.run_schema import Boundary, Finished, Row, Validation, Warning
from growlm.storage.input_files import exists, read_lines
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import typed

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
    """Lines that are none that growlm writes: a run that was killed may leave half a line."""

    def last(self) -> Line:
        """Counters at the end: of the last row or validation; zeros where there is none."""
        lines = [*self.rows[-1:], *self.validations[-1:]]
        start = dict.fromkeys(COUNTERS.values(), 0)
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
    if exists(path):
        for line in read_lines(path, key, root or path.parent):
            _add(history, line)
    return history


def _add(history: History, line: bytes) -> None:
    try:
        record = parse_json(line.decode(), allow_nan=True)
        event = record.get("event")
        kind, lines = {
            None: (Row, history.rows),
            "validation": (Validation, history.validations),
            "warning": (Warning, history.warnings),
            "boundary": (Boundary, history.boundaries),
            "phase_finished": (Finished, history.finished),
        }.get(event, (Any, []))
        lines.append(typed(kind, record))
    except (
        ValueError,
        AttributeError,
        TypeError,
    ):  # no JSON, no mapping, or an event that is no text
        history.unreadable += 1
