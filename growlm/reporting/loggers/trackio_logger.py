"""A Lightning logger for trackio, which logs to a dashboard on this machine."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import trackio
from lightning.pytorch.loggers import Logger


class TrackioLogger(Logger):
    """Logger that writes to a trackio run; `trackio show` displays it.

    Args:
        project: Name of the project.
        name: Name of the run.
        group: Group of the run; None for none.
        config: Settings to show beside the run.
        resume: Whether to continue the run of this name, if there is one.
    """

    def __init__(
        self, project: str, name: str, group: str | None, config: Mapping[str, Any], resume: bool
    ) -> None:
        super().__init__()
        self._project, self._name = project, name
        with contextlib.redirect_stdout(io.StringIO()):  # hints on how to start the dashboard
            self.run = trackio.init(
                project=project,
                name=name,
                group=group,
                config=dict(config),
                resume="allow" if resume else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at a step."""
        self.run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has the whole config since it began."""

    def finalize(self, status: str) -> None:
        """End the run, once all metrics are written."""
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()
