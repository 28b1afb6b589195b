"""Log the events of a run as metrics: one logger run, one step axis over all phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_adapters import (
    LightningLoggerAdapter,
    LogEntry,
    MetricAdapter,
    TensorBoardAdapter,
)
from growlm.reporting.loggers.logger_tables import (
    LoggerTable,
    build_boundary_table,
    build_sample_table,
)
from growlm.reporting.loggers.metric_names import (
    extract_boundary_metrics,
    extract_progress_metrics,
    extract_row_metrics,
)
from growlm.reporting.records import (
    BoundaryRecord,
    HistoryRow,
    PhaseSummary,
    ReusedPhases,
    RunSummary,
)

EVENTS_WITH_ENTRY = (None, "validation", "boundary", "phase_finished")
"""Events of the history for which an entry is logged; None for a step."""


class MetricLogger(RunListener):
    """Listener that logs an entry for each history row, validation, boundary and end of a phase.

    Args:
        logger: Any Lightning logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self.adapter = _build_adapter(logger)
        self.num_entries = 0
        self._num_already_logged = 0
        self.last_row: HistoryRow = {
            "global_step": 0,
            "tokens": 0,
            "flops": 0,
            "time_s": 0.0,
            "phase_index": 0,
        }
        self.training_loss: float | None = None
        self.boundaries: list[BoundaryRecord] = []
        self.samples: list[tuple[str, str]] = []

    def replay(
        self, lines: Iterable[HistoryRow], boundaries: Sequence[BoundaryRecord], should_log: bool
    ) -> None:
        """Replay the history of a resumed run, whichever logger it used before.

        Args:
            lines: Parsed lines of the history.
            boundaries: Records of the boundaries in the history, in order.
            should_log: Whether to log the entries; False if the logger already has them, or most of them.
        """
        records, lines = iter(boundaries), list(lines)
        if not should_log:
            num_entries = sum(line.get("event") in EVENTS_WITH_ENTRY for line in lines)
            self._num_already_logged = self.adapter.count_logged(num_entries)
        for line in lines:
            match line.get("event"):
                case None:
                    self.row_logged(line)
                case "validation":
                    self.validation_finished(line)
                case "boundary":
                    self.boundary_finished(next(records))
                case "phase_finished":
                    self._phase_sampled(line["phase"], line["sample"])
        self._num_already_logged = 0

    def row_logged(self, row: HistoryRow) -> None:
        """Log the metrics of a step."""
        self.last_row, self.training_loss = row, row["loss"]
        self._log(extract_row_metrics(row), loads=tuple(row.get("expert_loads", ())))

    def validation_finished(self, row: HistoryRow) -> None:
        """Log the validation loss at its step."""
        self.last_row = row
        self._log(extract_row_metrics(row))

    def boundary_finished(self, boundary: BoundaryRecord) -> None:
        """Log the growth at its step, with the table so far: the run may stop if its checks failed."""
        self.last_row = self.last_row | {"phase_index": self.last_row["phase_index"] + 1}
        self.boundaries.append(boundary)
        table = build_boundary_table(self.boundaries)
        self._log(extract_boundary_metrics(boundary, self.training_loss), tables=(table,))
        self.adapter.update_summary(_boundary_summary_metrics(boundary))

    def phases_reused(self, reused: ReusedPhases) -> None:
        """Add the reused phases and their run to the summary."""
        self.adapter.update_summary(
            {f"reused/{key}": value for key, value in asdict(reused).items()}
        )

    def phase_finished(self, summary: PhaseSummary) -> None:
        """Log the sample, and add the results of the phase to the summary."""
        self._phase_sampled(summary.name, summary.sample)
        self.adapter.update_summary(_phase_summary_metrics(summary))

    def run_finished(self, summary: RunSummary) -> None:
        """Add all results to the summary again: the logger of a resumed run may lack the earlier ones."""
        for phase in summary.phases:
            self.adapter.update_summary(_phase_summary_metrics(phase))
        for boundary in summary.boundaries:
            self.adapter.update_summary(_boundary_summary_metrics(boundary))

    def log_from_callbacks(self, metrics: dict[str, float], step: int) -> None:
        """Log what a callback of the user measured at a step of the run."""
        self.adapter.log_from_callbacks(self.num_entries, step, metrics)

    def close(self, failed: bool) -> None:
        """End the logger's run."""
        self.adapter.close(failed)

    def _phase_sampled(self, phase: str, text: str) -> None:
        self.samples.append((phase, text))
        self._log({}, tables=(build_sample_table(self.samples),))

    def _log(
        self,
        metrics: dict[str, float],
        loads: tuple[list[float], ...] = (),
        tables: tuple[LoggerTable, ...] = (),
    ) -> None:
        step, progress = int(self.last_row["global_step"]), extract_progress_metrics(self.last_row)
        if self.num_entries >= self._num_already_logged:
            self.adapter.log(LogEntry(self.num_entries, step, progress, metrics, loads, tables))
        self.num_entries += 1


def _build_adapter(logger: Logger) -> MetricAdapter:
    if isinstance(logger, WandbLogger):
        # Imported here because wandb is slow to import.
        from growlm.reporting.loggers.wandb_adapter import WandbAdapter

        return WandbAdapter(logger.experiment)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardAdapter(logger)
    return LightningLoggerAdapter(logger)


def _phase_summary_metrics(phase: PhaseSummary) -> dict[str, object]:
    left_out = ("name", "sample", "router_check", "initial_evaluation", "evaluation")
    metrics = {
        f"phase/{phase.name}/{key}": value
        for key, value in asdict(phase).items()
        if key not in left_out
    }
    for name, measures in phase.evaluation.items():
        metrics |= {f"phase/{phase.name}/val/{name}/{key}": v for key, v in measures.items()}
    return metrics


def _boundary_summary_metrics(boundary: BoundaryRecord) -> dict[str, object]:
    return {f"growth/{boundary.from_phase}-{boundary.to_phase}/jump": boundary.report.jump}
