"""Give Lightning's Trainer the run's logger, under the run's step axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from growlm.reporting.loggers.metric_logger import MetricLogger


class TrainerLogger(Logger):
    """Logger of one phase's Trainer, for what callbacks and modules of the user log.

    Lightning counts the steps of a phase; here they get those of the earlier phases added. Files that callbacks
    write beside the log (`ModelCheckpoint`) go to `lightning/PHASE/` in the run's folder.

    Args:
        metrics: Loggers of the run; none on ranks other than 0, and for `logger=none`.
        run_dir: Folder of the run.
        phase_name: Name of the phase.
        first_step: Steps of the run before this phase.
    """

    def __init__(
        self, metrics: Sequence[MetricLogger], run_dir: Path, phase_name: str, first_step: int
    ) -> None:
        super().__init__()
        self.metrics, self.run_dir = metrics, run_dir
        self.phase_name, self.first_step = phase_name, first_step

    @property
    def name(self) -> str:
        """Name of the folder in the run's folder."""
        return "lightning"

    @property
    def version(self) -> str:
        """Name of the phase."""
        return self.phase_name

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.run_dir)

    @property
    def experiment(self) -> Any:
        """The experiment of the run's own logger, such as the W&B run; of several loggers, the first one's."""
        if not self.metrics:
            return DummyExperiment()
        return getattr(self.metrics[0].logger, "experiment", None)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics of a step of the phase."""
        for logger in self.metrics:
            logger.log_from_callbacks(metrics, self.first_step + (step or 0))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config has been logged."""
