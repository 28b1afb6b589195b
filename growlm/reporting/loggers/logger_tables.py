"""Tables of a run, for loggers that can show one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growlm.reporting.loggers.metric_names import BOUNDARY_TABLE, SAMPLE_TABLE
from growlm.reporting.records import BoundaryRecord


@dataclass(frozen=True)
class Table:
    """Rows under column names."""

    name: str
    columns: list[str]
    rows: list[list[Any]]

    def markdown(self) -> str:
        """As Markdown, which TensorBoard shows as a table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def boundary_table(boundaries: Sequence[BoundaryRecord]) -> Table:
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
    return Table(BOUNDARY_TABLE, columns, rows)


def sample_table(samples: Sequence[tuple[str, str]]) -> Table:
    """The text of every phase so far, given as (phase, text)."""
    return Table(SAMPLE_TABLE, ["phase", "text"], [list(sample) for sample in samples])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
