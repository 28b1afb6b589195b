"""Adapt log entries to what each Lightning logger can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from growlm.reporting.loggers.logger_tables import LoggerTable
from growlm.reporting.loggers.metric_names import expert_load_metric_name


@dataclass(frozen=True)
class LogEntry:
    """Metrics, expert loads and tables that are logged together."""

    index: int
    """Number of earlier entries of the run."""
    step: int
    """Global step of the run; several entries may share one."""
    progress: dict[str, float]
    metrics: dict[str, float]
    expert_loads: tuple[list[float], ...] = ()
    """Fraction of the assignments that went to each expert, per layer."""
    tables: tuple[LoggerTable, ...] = ()


class MetricAdapter:
    """Base class of the adapters, which discards all entries."""

    def count_logged(self, num_entries: int) -> int:
        """Return how many of the entries before a resume the logger has: all, unless it knows better."""
        return num_entries

    def log(self, entry: LogEntry) -> None:
        """Log an entry."""

    def log_from_callbacks(self, index: int, step: int, metrics: dict[str, float]) -> None:
        """Log what a callback of the user measured, before the entry with this index."""

    def update_summary(self, metrics: dict[str, Any]) -> None:
        """Add values to the summary of the run."""

    def close(self, failed: bool) -> None:
        """End the logger's run."""


class LightningLoggerAdapter(MetricAdapter):
    """Adapter for any Lightning logger, which logs numbers only.

    Args:
        logger: Logger that receives the metrics.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def log(self, entry: LogEntry) -> None:
        """Log all numbers of the entry, including expert loads."""
        loads = {
            f"{expert_load_metric_name(layer)}/expert_{expert}": load
            for layer, shares in enumerate(entry.expert_loads)
            for expert, load in enumerate(shares)
        }
        if entry.metrics:
            self.logger.log_metrics({**entry.progress, **entry.metrics, **loads}, step=entry.step)

    def log_from_callbacks(self, index: int, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics at their step."""
        self.logger.log_metrics(metrics, step=step)

    def close(self, failed: bool) -> None:
        """Save what is not saved yet, and end the logger's run."""
        self.logger.save()
        self.logger.finalize("failed" if failed else "success")


class TensorBoardAdapter(LightningLoggerAdapter):
    """Adapter for TensorBoard, which logs numbers, and tables as text.

    Args:
        logger: Logger that receives the entries.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        super().__init__(logger)
        self.writer = logger.experiment

    def log(self, entry: LogEntry) -> None:
        """Log all numbers and tables of the entry."""
        super().log(entry)
        for table in entry.tables:
            self.writer.add_text(table.name, table.to_markdown(), entry.step)
