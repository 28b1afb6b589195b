"""Events to any Lightning logger, under the names that dashboards rely on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from growlm.reporting.listener import RunListener
from growlm.reporting.records import BoundaryRecord, Row, RunSummary

KEYS = {
    "loss": "train/loss",
    "val_loss": "val/loss",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens_per_second": "perf/tokens_per_second",
    "mfu": "perf/mfu",
    "tokens": "progress/tokens",
    "flops": "progress/flops",
    "time_s": "progress/time_s",
    "phase_index": "phase/index",
    "dead_experts": "moe/dead_experts",
    "load_entropy": "moe/load_entropy",
    "max_load": "moe/max_load",
    "aux_loss": "moe/aux_loss",
    "tied_choices": "moe/tied_choices",
    "expert_similarity": "moe/expert_similarity",
    "router_distance": "moe/router_distance",
    "router_grad_norm": "moe/router_grad_norm",
}
"""Field of a history row -> metric."""
PROGRESS = ("tokens", "flops", "time_s", "phase_index")


class MetricLogger(RunListener):
    """One logger run with one step axis over all phases.

    Args:
        logger: Any of Lightning's.
        position: From `position`, where a run goes on.
    """

    def __init__(self, logger: Logger, position: dict[str, Any] | None = None) -> None:
        self.logger = logger
        self.rows = 0
        self.last: Row = {
            "global_step": 0,
            "tokens": 0,
            "flops": 0,
            "time_s": 0.0,
            "phase_index": 0,
        }
        if position is not None:
            self.rows, self.last = position["rows"], position["last"]

    def position(self) -> dict[str, Any]:
        """How many rows the logger has had, and the last one."""
        return {"rows": self.rows, "last": self.last}

    def row_logged(self, row: Row) -> None:
        """A step's metrics."""
        self.last = row
        self._log({KEYS[key]: value for key, value in row.items() if key in KEYS})

    def validated(self, row: Row) -> None:
        """The validation loss at its step."""
        self.last = row
        self._log({KEYS[key]: value for key, value in row.items() if key in KEYS})

    def boundary_passed(self, boundary: BoundaryRecord) -> None:
        """The growth, at the step where it happened."""
        report = boundary.report
        progress = {KEYS[key]: self.last[key] for key in PROGRESS}
        self._log(
            {
                **progress,
                "phase/index": self.last["phase_index"] + 1,
                "growth/loss_before": report.loss_before,
                "growth/loss_after": report.loss_after,
                "growth/jump": report.jump,
                "growth/max_logit_difference": report.max_logit_difference,
            }
        )

    def run_finished(self, summary: RunSummary) -> None:
        """W&B: boundaries and samples as tables, the figures of each phase in the run's summary."""
        if not isinstance(self.logger, WandbLogger):
            return
        names = ["from", "to", "growth", "loss_before", "loss_after", "jump", "checks"]
        boundaries = [
            [
                b.from_phase,
                b.to_phase,
                "; ".join(b.growth),
                b.report.loss_before,
                b.report.loss_after,
                b.report.jump,
                ", ".join(f"{name} {check.status}" for name, check in b.report.checks.items()),
            ]
            for b in summary.boundaries
        ]
        step = self.last["global_step"]
        if boundaries:
            self.logger.log_table("growth/boundaries", columns=names, data=boundaries, step=step)
        samples = [[phase.name, phase.sample] for phase in summary.phases]
        self.logger.log_table("samples", columns=["phase", "text"], data=samples, step=step)
        figures: dict[str, Any] = {
            f"phase/{phase.name}/{key}": value
            for phase in summary.phases
            for key, value in asdict(phase).items()
            if key not in ("name", "sample", "router_check")
        }
        for b in summary.boundaries:
            figures[f"growth/{b.from_phase}-{b.to_phase}/jump"] = b.report.jump
        self.logger.experiment.summary.update(figures)

    def close(self, failed: bool) -> None:
        """End the logger's run, so that the next one in this process is one of its own."""
        self.logger.finalize("failed" if failed else "success")
        if isinstance(self.logger, WandbLogger):
            self.logger.experiment.finish(exit_code=int(failed))

    def _log(self, metrics: dict[str, float]) -> None:
        step = int(self.last["global_step"])
        if isinstance(self.logger, WandbLogger):
            # With W&B's own step, so that it drops what a run logged before it was killed and logs again.
            self.logger.experiment.log({**metrics, "trainer/global_step": step}, step=self.rows)
        else:
            self.logger.log_metrics(metrics, step=step)
        self.rows += 1
