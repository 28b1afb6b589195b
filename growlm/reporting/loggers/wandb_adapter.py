"""Log metrics, histograms, tables and a summary to W&B."""

from __future__ import annotations

from pathlib import Path
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
from growlm.reporting.loggers.wandb_files import mend_offline_parts


class WandbAdapter(MetricAdapter):
    """Adapter for a W&B run.

    Args:
        run: Run that `wandb.init` returned.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        # Lightning's logger defines no x axis for a run that it did not start itself.
        run.define_metric(STEP_METRIC)
        run.define_metric("*", step_metric=STEP_METRIC)
        for axis in X_AXIS_METRICS:
            run.define_metric(axis, step_metric=STEP_METRIC)
        for loss in ("train/loss", "val/loss"):
            run.define_metric(loss, step_metric=STEP_METRIC, summary="min,last")
        # Hidden, so that each prefix gets one panel for all its metrics rather than a panel per metric.
        for prefix in (LOSS_BY_PHASE_PREFIX, GROWTH_ON_LOSS_CURVE_PREFIX):
            run.define_metric(f"{prefix}*", step_metric=STEP_METRIC, hidden=True)

    def count_logged(self, num_entries: int) -> int:
        """Return how many entries W&B has: offline, a killed run may have logged more than W&B wrote."""
        part = Path(self.run.dir).parent
        if not part.name.startswith("offline-run-"):
            return num_entries
        return mend_offline_parts(part.parent, self.run.id, part, num_entries)

    def log(self, entry: LogEntry) -> None:
        """Log an entry as a row of the W&B history."""
        histograms = {
            expert_load_metric_name(layer): make_expert_load_histogram(loads)
            for layer, loads in enumerate(entry.expert_loads)
        }
        tables = {t.name: wandb.Table(columns=[*t.columns], data=t.rows) for t in entry.tables}
        values = {STEP_METRIC: entry.step, **entry.progress, **entry.metrics, **histograms}
        # With an explicit step, W&B drops rows that a killed run had logged and logs again after a resume.
        try:
            self.run.log(values | tables, step=entry.index)
        except wandb.Error as error:
            # In online mode, W&B contacts its server before it logs a table. A network failure must not stop
            # the run, and the next table of this name contains these rows too.
            wandb.termwarn(f"{', '.join(tables)} not logged: {error}")
            self.run.log(values, step=entry.index)

    def log_from_callbacks(self, index: int, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics to the row of the next entry: a resume finds rows by the number of their entry."""
        self.run.log({STEP_METRIC: step, **metrics}, step=index)

    def update_summary(self, metrics: dict[str, Any]) -> None:
        """Add values to the run's summary, which fills the columns of W&B's table of runs."""
        self.run.summary.update(metrics)

    def close(self, failed: bool) -> None:
        """End the run, so that the next one in this process starts a new W&B run."""
        self.run.finish(exit_code=int(failed))


def make_expert_load_histogram(loads: list[float]) -> wandb.Histogram:
    """Return a histogram with a bin per expert; neighboring experts share a bin if W&B's limit is exceeded."""
    width = -(-len(loads) // wandb.Histogram.MAX_LENGTH)
    starts = range(0, len(loads), width)
    shares = [sum(loads[start : start + width]) for start in starts]
    return wandb.Histogram(np_histogram=(np.array(shares), np.array([*starts, len(loads)])))
