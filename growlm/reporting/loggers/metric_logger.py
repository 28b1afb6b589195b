"""The events of a run as metrics: one logger run, one step axis over all phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_adapters import Entry, LoggerSink, MetricSink, TensorBoardSink
from growlm.reporting.loggers.logger_tables import Table, boundary_table, sample_table
from growlm.reporting.loggers.metric_names import boundary_metrics, progress_metrics, row_metrics
from growlm.reporting.records import BoundaryRecord, PhaseSummary, Reused, Row, RunSummary


class MetricLogger(RunListener):
    """Rows, validations, boundaries and ends of phases are an entry of the logger each.

    Args:
        logger: Any of Lightning's.
    """

    def __init__(self, logger: Logger) -> None:
        self.sink = _sink_for(logger)
        self.entries = 0
        self.last: Row = {
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
        self, lines: Iterable[Row], boundaries: Sequence[BoundaryRecord], tell: bool
    ) -> None:
        """Take up what a run has done so far, whichever logger it had then.

        Args:
            lines: Of its history, parsed.
            boundaries: That it passed, one for each that the history tells of.
            tell: Whether the logger is to hear all of it; if not, it has had it already.
        """
        records = iter(boundaries)
        sink = self.sink
        self.sink = sink if tell else MetricSink()
        for line in lines:
            match line.get("event"):
                case None:
                    self.row_logged(line)
                case "validation":
                    self.validated(line)
                case "boundary":
                    self.boundary_passed(next(records))
                case "phase_finished":
                    self._phase_sampled(line["phase"], line["sample"])
        self.sink = sink

    def row_logged(self, row: Row) -> None:
        """A step's metrics."""
        self.last, self.training_loss = row, row["loss"]
        self._log(row_metrics(row), loads=tuple(row.get("expert_loads", ())))

    def validated(self, row: Row) -> None:
        """The validation loss at its step."""
        self.last = row
        self._log(row_metrics(row))

    def boundary_passed(self, boundary: BoundaryRecord) -> None:
        """The growth, at the step where it happened, with the table so far: the run may fail on it."""
        self.last = self.last | {"phase_index": self.last["phase_index"] + 1}
        self.boundaries.append(boundary)
        table = boundary_table(self.boundaries)
        self._log(boundary_metrics(boundary, self.training_loss), tables=(table,))
        self.sink.summarize(_boundary_figures(boundary))

    def phases_reused(self, reused: Reused) -> None:
        """Which, and from where."""
        self.sink.summarize({f"reused/{key}": value for key, value in asdict(reused).items()})

    def phase_finished(self, summary: PhaseSummary) -> None:
        """The sample, and the phase's figures."""
        self._phase_sampled(summary.name, summary.sample)
        self.sink.summarize(_phase_figures(summary))

    def run_finished(self, summary: RunSummary) -> None:
        """All figures once more: of a resumed run, the logger may not have had the first."""
        for phase in summary.phases:
            self.sink.summarize(_phase_figures(phase))
        for boundary in summary.boundaries:
            self.sink.summarize(_boundary_figures(boundary))

    def close(self, failed: bool) -> None:
        """End the logger's run."""
        self.sink.close(failed)

    def _phase_sampled(self, phase: str, text: str) -> None:
        self.samples.append((phase, text))
        self._log({}, tables=(sample_table(self.samples),))

    def _log(
        self,
        metrics: dict[str, float],
        loads: tuple[list[float], ...] = (),
        tables: tuple[Table, ...] = (),
    ) -> None:
        step, progress = int(self.last["global_step"]), progress_metrics(self.last)
        self.sink.log(Entry(self.entries, step, progress, metrics, loads, tables))
        self.entries += 1


def _sink_for(logger: Logger) -> MetricSink:
    if isinstance(logger, WandbLogger):
        from growlm.reporting.loggers.wandb_adapter import (
            WandbSink,  # wandb takes its time to import
        )

        return WandbSink(logger.experiment)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardSink(logger)
    return LoggerSink(logger)


def _phase_figures(phase: PhaseSummary) -> dict[str, object]:
    return {
        f"phase/{phase.name}/{key}": value
        for key, value in asdict(phase).items()
        if key not in ("name", "sample", "router_check")
    }


def _boundary_figures(boundary: BoundaryRecord) -> dict[str, object]:
    return {f"growth/{boundary.from_phase}-{boundary.to_phase}/jump": boundary.report.jump}
