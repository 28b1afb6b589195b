"""The names that dashboards rely on, and which field of a history row goes under which."""

from __future__ import annotations

from growlm.reporting.records import BoundaryRecord, HistoryRow

STEP_METRIC = "trainer/global_step"
"""W&B's default x axis; the other loggers have a step of their own."""
X_AXIS_METRICS = ("progress/tokens", "progress/flops", "progress/time_s")
"""What else can be an x axis."""
LOSS_BY_PHASE_PREFIX = "loss_by_phase/"
"""The training loss again, under the name of its phase: panels colour by name."""
GROWTH_ON_LOSS_CURVE_PREFIX = "growth/on_loss_curve/"
"""A growth on the loss curve, under the two phases' names: a series of one point has no line to be drawn by."""
EXPERT_LOAD_PREFIX = "moe/load/"
"""Every expert's share, by layer."""
BOUNDARY_TABLE = "growth/boundaries"
SAMPLE_TABLE = "samples"

PROGRESS_METRIC_NAMES = {
    "tokens": "progress/tokens",
    "flops": "progress/flops",
    "time_s": "progress/time_s",
    "phase_index": "phase/index",
}
"""Field of a history row -> metric, in whatever is logged."""
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
"""Field of a history row -> metric, where the row has it."""


def extract_progress_metrics(row: HistoryRow) -> dict[str, float]:
    """Where the run stood at a row."""
    return {name: row[field] for field, name in PROGRESS_METRIC_NAMES.items()}


def extract_row_metrics(row: HistoryRow) -> dict[str, float]:
    """What a row measured; loads apart, which every logger shows in its own way."""
    metrics = {name: row[field] for field, name in ROW_METRIC_NAMES.items() if field in row}
    if "loss" in row:
        metrics[LOSS_BY_PHASE_PREFIX + row["phase"]] = row["loss"]
    return metrics


def extract_boundary_metrics(
    boundary: BoundaryRecord, training_loss: float | None
) -> dict[str, float]:
    """What a growth did.

    Args:
        boundary: The growth.
        training_loss: Of the last step before it; None if there was none.
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
    """The name of a layer's loads; two digits sort as numbers do."""
    return f"{EXPERT_LOAD_PREFIX}layer_{layer:02d}"
