"""Write the JSON files of a run: training history, boundaries and summary."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from growlm.reporting.events import RunListener
from growlm.reporting.records import (
    BoundaryRecord,
    HistoryRow,
    PhaseStart,
    PhaseSummary,
    RunSummary,
)
from growlm.runtime.errors import DiskError, UserError
from growlm.storage.atomic_files import atomic_write_text, open_for_append
from growlm.storage.input_files import MAX_HISTORY_BYTES, open_input_file
from growlm.storage.watched_folders import WatchedFolders

PHASE_END = b'{"event": "phase_finished"'
"""Beginning of the line that is written at the end of a phase."""


class RunHistoryWriter(RunListener):
    """Listener that writes every event to disk at once, so that a killed run loses nothing.

    Args:
        run_dir: Existing folder of the run.
        position: Position in the history to resume from, as returned by `position()`; later lines are
            truncated, but for the end of a phase right after it, which a run that is extended goes on from. None
            starts a new history.
        boundaries: Records of the boundaries passed before `position`.

    Raises:
        UserError: If the history up to `position` does not match its checksum.
        FolderRemovedError: From every event, once one of the run's folders has been removed.
    """

    def __init__(
        self,
        run_dir: Path,
        position: dict[str, Any] | None = None,
        boundaries: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.run_dir = run_dir
        self.boundaries = list(boundaries)
        folder = run_dir / "checkpoints"
        folder.mkdir(exist_ok=True)
        self.path = folder / "training_history.jsonl"
        self._digest = hashlib.sha256()
        if position is None:
            (run_dir / "boundaries.json").unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        else:
            self._truncate_to(position)
        self.history_file: BinaryIO = open_for_append(self.path)
        marker = run_dir / "resume" / "run.json"
        self.watched_folders = WatchedFolders(
            [run_dir, run_dir / "resume", folder, self.path], marker
        )

    def position(self) -> dict[str, Any]:
        """Return the size of the history on disk in bytes, and its checksum."""
        os.fsync(self.history_file.fileno())
        return {"bytes": self.history_file.tell(), "sha256": self._digest.hexdigest()}

    def phase_started(self, start: PhaseStart) -> None:
        """Write an event line."""
        self._write({"event": "phase_started", "phase": start.name, "phase_index": start.index})

    def boundary_finished(self, boundary: BoundaryRecord) -> None:
        """Write an event line, and rewrite boundaries.json."""
        record = boundary.to_json()
        line = {
            key: value
            for key, value in record.items()
            if key not in ("checks", "operators", "expert_movement")
        }
        checks = {name: check["status"] for name, check in record["checks"].items()}
        self._write({"event": "boundary", **line, "checks": checks})
        self.boundaries.append(record)
        write_json(self.run_dir / "boundaries.json", self.boundaries)

    def boundary_evaluated(self, boundary: BoundaryRecord) -> None:
        """Rewrite boundaries.json."""
        self.boundaries[-1] = boundary.to_json()
        write_json(self.run_dir / "boundaries.json", self.boundaries)

    def row_logged(self, row: HistoryRow) -> None:
        """Write a history line."""
        self._write(row)

    def validation_finished(self, row: HistoryRow) -> None:
        """Write an event line."""
        self._write({"event": "validation", **row})

    def warning_logged(self, row: HistoryRow, text: str) -> None:
        """Write an event line."""
        self._write({"event": "warning", **row, "text": text})

    def phase_finished(self, summary: PhaseSummary) -> None:
        """Write an event line with the sample."""
        self._write(
            {
                "event": "phase_finished",
                "phase": summary.name,
                "val_loss": summary.val_loss,
                "sample": summary.sample,
            }
        )

    def run_finished(self, summary: RunSummary) -> None:
        """Write summary.json and boundaries.json, even if nothing grew."""
        self.watched_folders.check()
        write_json(self.run_dir / "boundaries.json", self.boundaries)
        write_json(self.run_dir / "summary.json", summary.to_json())

    def close(self, failed: bool) -> None:
        """Close the history file."""
        self.history_file.close()

    def _truncate_to(self, position: dict[str, Any]) -> None:
        size = remaining = position["bytes"]
        with open_input_file(self.path, "resume", self.run_dir) as file:
            while remaining and (data := file.read(min(remaining, 2**20))):
                self._digest.update(data)
                remaining -= len(data)
            next_line = b"" if remaining else file.readline(MAX_HISTORY_BYTES)
        if remaining or self._digest.hexdigest() != position["sha256"]:
            raise UserError(
                "resume", self.path, f"its first {size:,} bytes do not match the recorded checksum"
            )
        if next_line.startswith(PHASE_END) and next_line.endswith(b"\n"):
            self._digest.update(next_line)
            size += len(next_line)
        os.truncate(self.path, size)
        write_json(self.run_dir / "boundaries.json", self.boundaries)

    def _write(self, record: dict[str, Any]) -> None:
        self.watched_folders.check()
        line = (json.dumps(record) + "\n").encode()
        try:
            self.history_file.write(line)
            self.history_file.flush()
        except OSError as error:
            raise DiskError(self.path, error, len(line)) from error
        self._digest.update(line)


def write_json(path: Path, value: Any) -> None:
    """Write a value to a JSON file atomically."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")
