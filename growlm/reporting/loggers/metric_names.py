"""Define the metric names that dashboards rely on, and map history rows to them."""

from __future__ import annotations

from growlm.reporting.records import BoundaryRecord, HistoryRow

STEP_METRIC = "trainer/global_step"
"""Default x axis in W&B; the other loggers have their own step."""
X_AXIS_METRICS = ("progress/tokens", "progress/flops", "progress/time_s")
"""Metrics that can serve as another x axis."""
LOSS_BY_PHASE_PREFIX = "loss_by_phase/"
"""Prefix of the training loss per phase: panels assign colors by metric name."""
GROWTH_ON_LOSS_CURVE_PREFIX = "growth/on_loss_curve/"
"""Prefix of the points that mark a growth on the loss curve, followed by the names of the two phases."""
EXPERT_LOAD_PREFIX = "moe/load/"
"""Prefix of the expert loads, followed by the layer."""
BOUNDARY_TABLE = "growth/boundaries"
SAMPLE_TABLE = "samples"

PROGRESS_METRIC_NAMES = {
    "tokens": "progress/tokens",
    "flops": "progress/flops",
    "time_s": "progress/time_s",
    "phase_index": "phase/index",
}
"""Fields of a history row and their metrics, which every entry has."""
ROW_METRIC_NAMES = {
    "loss": "train/loss",
    "val_loss": "val/loss",
    "val_bits_per_byte": "val/bits_per_byte",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens_per_second": "perf/tokens_per_second",
    "mfu": "perf/mfu",
    "dead_experts": "moe/dead_experts",
    "load_entropy": "moe/load_entropy",
    "max_load": "moe/max_load",
    "aux_loss": "moe/aux_loss",
    "tied_choices": "moe/tied_choices",
    "expert_similarity": "moe/expert_similarity",
    "router_distance": "moe/router_distance",
    "router_grad_norm": "moe/router_grad_norm",
}
"""Fields of a history row and their metrics, logged if the row has the field."""


def extract_progress_metrics(row: HistoryRow) -> dict[str, float]:
    """Return the counters of a row: tokens, FLOPs, time and phase index."""
    return {name: row[field] for field, name in PROGRESS_METRIC_NAMES.items()}


def extract_row_metrics(row: HistoryRow) -> dict[str, float]:
    """Return the metrics of a row, without expert loads, which each logger shows in its own way."""
    metrics = {name: row[field] for field, name in ROW_METRIC_NAMES.items() if field in row}
    if "loss" in row:
        metrics[LOSS_BY_PHASE_PREFIX + row["phase"]] = row["loss"]
    for name, measures in row.get("evaluation", {}).items():
        metrics |= {f"val/{name}/{key}": value for key, value in measures.items()}
    return metrics


def extract_boundary_metrics(
    boundary: BoundaryRecord, training_loss: float | None
) -> dict[str, float]:
    """Return the metrics of a growth.

    Args:
        boundary: Record of the growth.
        training_loss: Training loss of the last step before it; None if there was none.
    """
    report = boundary.report
    metrics = {
        "growth/loss_before": report.loss_before,
        "growth/loss_after": report.loss_after,
        "growth/jump": report.jump,
        "growth/max_logit_difference": report.max_logit_difference,
    }
    if training_loss is not None:
        metrics[f"{GROWTH_ON_LOSS_CURVE_PREFIX}{boundary.from_phase}-{boundary.to_phase}"] = (
            training_loss
        )
    return metrics


def expert_load_metric_name(layer: int) -> str:
    """Return the metric name of a layer's expert loads, with two digits so that names sort numerically."""
    return f"{EXPERT_LOAD_PREFIX}layer_{layer:02d}"
