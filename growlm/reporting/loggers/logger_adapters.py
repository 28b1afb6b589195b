"""Where metrics go: what every Lightning logger gets, and what some can show besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from growlm.reporting.loggers.logger_tables import LoggerTable
from growlm.reporting.loggers.metric_names import expert_load_metric_name


@dataclass(frozen=True)
class LogEntry:
    """What is logged at once."""

    index: int
    """How many entries came before it in the run."""
    step: int
    """The run's global step; several entries may share one."""
    progress: dict[str, float]
    metrics: dict[str, float]
    expert_loads: tuple[list[float], ...] = ()
    """Share of the assignments that went to each expert, by layer."""
    tables: tuple[LoggerTable, ...] = ()


class MetricAdapter:
    """Takes everything, and keeps nothing of it."""

    def log(self, entry: LogEntry) -> None:
        """Log an entry."""

    def update_summary(self, metrics: dict[str, Any]) -> None:
        """Figures of the run as a whole; later ones are added to earlier ones."""

    def close(self, failed: bool) -> None:
        """The run is over."""


class LightningLoggerAdapter(MetricAdapter):
    """Numbers alone: what any logger of Lightning's takes."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def log(self, entry: LogEntry) -> None:
        """Every number of the entry, loads included."""
        loads = {
            f"{expert_load_metric_name(layer)}/expert_{expert}": load
            for layer, shares in enumerate(entry.expert_loads)
            for expert, load in enumerate(shares)
        }
        if entry.metrics:
            self.logger.log_metrics({**entry.progress, **entry.metrics, **loads}, step=entry.step)

    def close(self, failed: bool) -> None:
        """End the logger's run."""
        self.logger.finalize("failed" if failed else "success")


class TensorBoardAdapter(LightningLoggerAdapter):
    """Numbers, and tables as text."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        super().__init__(logger)
        self.writer = logger.experiment

    def log(self, entry: LogEntry) -> None:
        """Every number and every table of the entry."""
        super().log(entry)
        for table in entry.tables:
            self.writer.add_text(table.name, table.to_markdown(), entry.step)
