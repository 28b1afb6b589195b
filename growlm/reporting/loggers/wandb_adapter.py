"""What W&B gets: x axes, histograms, tables and a summary, besides the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import wandb

from growlm.reporting.loggers.logger_adapters import LogEntry, MetricAdapter
from growlm.reporting.loggers.metric_names import (
    GROWTH_ON_LOSS_CURVE_PREFIX,
    LOSS_BY_PHASE_PREFIX,
    STEP_METRIC,
    X_AXIS_METRICS,
    expert_load_metric_name,
)


class WandbAdapter(MetricAdapter):
    """One run of W&B.

    Args:
        run: From `wandb.init`.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        # Lightning's logger defines no x axis for a run that it did not begin itself.
        run.define_metric(STEP_METRIC)
        run.define_metric("*", step_metric=STEP_METRIC)
        for axis in X_AXIS_METRICS:
            run.define_metric(axis, step_metric=STEP_METRIC)
        for loss in ("train/loss", "val/loss"):
            run.define_metric(loss, step_metric=STEP_METRIC, summary="min,last")
        for family in (
            LOSS_BY_PHASE_PREFIX,
            GROWTH_ON_LOSS_CURVE_PREFIX,
        ):  # for one panel together, not one each
            run.define_metric(f"{family}*", step_metric=STEP_METRIC, hidden=True)

    def log(self, entry: LogEntry) -> None:
        """One row of W&B's history."""
        histograms = {
            expert_load_metric_name(layer): make_expert_load_histogram(loads)
            for layer, loads in enumerate(entry.expert_loads)
        }
        tables = {t.name: wandb.Table(columns=[*t.columns], data=t.rows) for t in entry.tables}
        values = {STEP_METRIC: entry.step, **entry.progress, **entry.metrics, **histograms}
        # With W&B's own step, so that it drops what a run logged before it was killed and logs again.
        try:
            self.run.log(values | tables, step=entry.index)
        except wandb.Error as error:
            # Online, it asks its server about a table first. A run outlives its network, and the next table of
            # this name has these rows too.
            wandb.termwarn(f"{', '.join(tables)} not logged: {error}")
            self.run.log(values, step=entry.index)

    def update_summary(self, metrics: dict[str, Any]) -> None:
        """Into the run's summary: the columns of the table of runs."""
        self.run.summary.update(metrics)

    def close(self, failed: bool) -> None:
        """End the run, so that the next one in this process is one of its own."""
        self.run.finish(exit_code=int(failed))


def make_expert_load_histogram(loads: list[float]) -> wandb.Histogram:
    """A bin for every expert; for as many neighbours as need be where W&B has not bins enough."""
    width = -(-len(loads) // wandb.Histogram.MAX_LENGTH)
    starts = range(0, len(loads), width)
    shares = [sum(loads[start : start + width]) for start in starts]
    return wandb.Histogram(np_histogram=(np.array(shares), np.array([*starts, len(loads)])))
