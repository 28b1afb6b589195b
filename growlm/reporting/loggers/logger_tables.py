"""Tables of a run, for loggers that can show one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growlm.reporting.loggers.metric_names import BOUNDARY_TABLE, SAMPLE_TABLE
from growlm.reporting.records import BoundaryRecord


@dataclass(frozen=True)
class LoggerTable:
    """Rows under column names."""

    name: str
    columns: list[str]
    rows: list[list[Any]]

    def to_markdown(self) -> str:
        """As Markdown, which TensorBoard shows as a table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(
            f"| {' | '.join(_format_cell(value) for value in line)} |" for line in lines
        )


def build_boundary_table(boundaries: Sequence[BoundaryRecord]) -> LoggerTable:
    """A row for every growth so far, with its losses and the outcome of its checks."""
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
    """The text of every phase so far, given as (phase, text)."""
    return LoggerTable(SAMPLE_TABLE, ["phase", "text"], [list(sample) for sample in samples])


def _format_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
