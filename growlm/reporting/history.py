"""The run's files of plain JSON: history, boundaries, summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from growlm.reporting.listener import RunListener
from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, Row, RunSummary


class HistoryFiles(RunListener):
    """Writes every event as it comes: a run that dies leaves all it knew.

    Args:
        run_dir: Exists.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.boundaries: list[dict[str, Any]] = []
        folder = run_dir / "checkpoints"
        folder.mkdir(exist_ok=True)
        self.history: TextIO = (folder / "training_history.jsonl").open("a", buffering=1)

    def phase_started(self, start: PhaseStart) -> None:
        """An event line."""
        self._write({"event": "phase_started", "phase": start.name, "phase_index": start.index})

    def boundary_passed(self, boundary: BoundaryRecord) -> None:
        """An event line, and boundaries.json anew."""
        record = boundary.to_json()
        short = {key: value for key, value in record.items() if key not in ("checks", "operators")}
        checks = {name: check["status"] for name, check in record["checks"].items()}
        self._write({"event": "boundary", **short, "checks": checks})
        self.boundaries.append(record)
        write_json(self.run_dir / "boundaries.json", self.boundaries)

    def row_logged(self, row: Row) -> None:
        """A line."""
        self._write(row)

    def validated(self, row: Row) -> None:
        """An event line."""
        self._write({"event": "validation", **row})

    def warned(self, row: Row, text: str) -> None:
        """An event line."""
        self._write({"event": "warning", **row, "text": text})

    def phase_finished(self, summary: PhaseSummary) -> None:
        """An event line with the sample."""
        self._write(
            {
                "event": "phase_finished",
                "phase": summary.name,
                "val_loss": summary.val_loss,
                "sample": summary.sample,
            }
        )

    def run_finished(self, summary: RunSummary) -> None:
        """summary.json, and boundaries.json also where nothing grew."""
        write_json(self.run_dir / "boundaries.json", self.boundaries)
        write_json(self.run_dir / "summary.json", summary.to_json())

    def close(self, failed: bool) -> None:
        """Close the history."""
        self.history.close()

    def _write(self, record: dict[str, Any]) -> None:
        self.history.write(json.dumps(record) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write a file whole: beside its place, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.rename(path)
