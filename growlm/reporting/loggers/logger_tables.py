"""Build the tables of a run for loggers that can show tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growlm.reporting.loggers.metric_names import BOUNDARY_TABLE, SAMPLE_TABLE
from growlm.reporting.records import BoundaryRecord


@dataclass(frozen=True)
class LoggerTable:
    """Table with a name, column names and rows."""

    name: str
    columns: list[str]
    rows: list[list[Any]]

    def to_markdown(self) -> str:
        """Return the table as Markdown, which TensorBoard renders."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(
            f"| {' | '.join(_format_cell(value) for value in line)} |" for line in lines
        )


def build_boundary_table(boundaries: Sequence[BoundaryRecord]) -> LoggerTable:
    """Return a table with a row per growth so far: losses and results of its checks."""
    columns = ["from", "to", "growth", "loss_before", "loss_after", "jump", "passed", "checks"]
    rows = [
        [
            b.from_phase,
            b.to_phase,
            "; ".join(b.growth),
            b.report.loss_before,
            b.report.loss_after,
            b.report.jump,
            bool(b.report),
            ", ".join(f"{name} {check.status}" for name, check in b.report.checks.items()),
        ]
        for b in boundaries
    ]
    return LoggerTable(BOUNDARY_TABLE, columns, rows)


def build_sample_table(samples: Sequence[tuple[str, str]]) -> LoggerTable:
    """Return a table of the samples so far, given as (phase, text)."""
    return LoggerTable(SAMPLE_TABLE, ["phase", "text"], [list(sample) for sample in samples])


def _format_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
