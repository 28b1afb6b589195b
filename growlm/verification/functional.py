"""Check 4, functional identity: each layer of the grown model has the same residual stream as the old model.

The grown stream is read back through the growth map: every channel that copies an old one must carry its
value. The fault is in the layer where the drift begins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from growlm.growth.growth_map import GrowthMap
from growlm.runtime.number_format import (
    format_fine_share,
    format_jump,
    format_magnitude,
    format_share,
)
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison

MIN_COMPARED_FRACTION = 0.5
"""The share of positions that must have been compared for the check to pass."""
MAX_ROUNDING_FRACTION = 0.25
"""The largest rounding error, as a share of the largest logit, with which the check can pass."""


def check_functional_identity_layerwise(
    old_model: nn.Module,
    new_model: nn.Module,
    probe: Tensor,
    *,
    tolerance: float = 1e-4,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """Compare the residual streams and logits of two models, layer by layer.

    The arguments are those of `ModelComparison`.
    """
    return report_functional_identity(
        ModelComparison(old_model, new_model, probe, growth_map=growth_map, tolerance=tolerance)
    )


def report_functional_identity(comparison: ModelComparison) -> CheckReport:
    """Decide whether a grown model computes the same as the old one, from a comparison made already."""
    layers = _drift_by_layer(comparison)
    choices = comparison.routing_changes
    embedding = float(
        comparison.stream_difference(
            comparison.old_trace.embeddings, comparison.new_trace.embeddings
        ).max()
    )
    worst = comparison.max_logit_difference
    rounding = comparison.rounding_bounds
    figures = {
        "embedding_max_difference": embedding,
        "layers": [asdict(drift) for drift in layers],
        "logits_max_difference": worst,
        "tolerance": comparison.tolerance,
        "rounding": None if rounding is None else rounding.logits,
        "loss_before": comparison.old_trace.loss,
        "loss_after": comparison.new_trace.loss,
        "near_ties": choices.near_ties,
        "excused_positions": int(choices.affected_positions[-1].sum()),
    }
    if comparison.rounded_tensors:
        figures["rounded_tensors"] = len(comparison.rounded_tensors)
        figures["expected_logit_change"] = comparison.expected_logit_change
        difference = comparison.new_trace.logits - comparison.old_trace.logits
        figures["logit_change"] = float(difference.std() / comparison.old_trace.logits.std())
    # "not <=" instead of ">", so that a NaN fails.
    drifted = [
        d for d in layers if not d.max_difference <= comparison.drift_tolerance(d.layer, rounding)
    ]
    tolerance = format_magnitude(comparison.tolerance)
    largest = float(comparison.old_trace.logits.abs().max())
    moved = not embedding <= comparison.embedding_tolerance
    same = worst <= comparison.tolerance and not drifted and not moved
    if same and choices.compared_fraction < MIN_COMPARED_FRACTION:
        summary = (
            f"only {format_share(choices.compared_fraction)} of the positions could be compared, because near "
            "ties between experts affect the others; the routers hardly distinguish experts"
        )
        return CheckReport("functional", Status.FINDING, summary, figures)
    if same and rounding is not None and comparison.tolerance > MAX_ROUNDING_FRACTION * largest:
        summary = (
            f"rounding alone may move the logits by {tolerance} (largest logit "
            f"{format_magnitude(largest)}): "
            "weights or noise are so large that the comparison is inconclusive"
        )
        return CheckReport("functional", Status.FINDING, summary, figures)
    if same:
        summary = f"logits within {format_magnitude(worst)} of tolerance {tolerance}"
        if rounding is not None:
            summary += ", the measured rounding"
        if layers:
            drift = format_magnitude(max(d.max_difference for d in layers))
            summary += f", largest drift of a layer {drift}"
        if "logit_change" in figures:
            summary += (
                f"; {figures['rounded_tensors']} tensors were rounded, which moved the logits by "
                f"{format_fine_share(figures['logit_change'])} of their standard deviation "
                f"(expected {format_fine_share(figures['expected_logit_change'])})"
            )
        return CheckReport("functional", Status.PASSED, summary, figures)
    jump = comparison.new_trace.loss - comparison.old_trace.loss
    moved_by = format_magnitude(worst)
    summary = f"logits moved by {moved_by} (tolerance {tolerance}), loss by {format_jump(jump)}"
    if not comparison.growth_map.lossless:
        summary += "; expected, because this growth is not lossless"
        return CheckReport("functional", Status.FINDING, summary, figures)
    if moved:
        summary += (
            f"; the embeddings already differ by {format_magnitude(embedding)}; likely cause: embedding "
            "columns that are not plain copies"
        )
    elif drifted:
        summary += (
            f"; drift begins in layer {drifted[0].layer} ({format_magnitude(drifted[0].max_difference)}); "
            f"likely cause: {_likely_cause(comparison, drifted[0].layer)}"
        )
    else:
        summary += "; all layers agree; likely cause: the final norm or the head"
    return CheckReport("functional", Status.FAILED, summary, figures)


def _likely_cause(comparison: ModelComparison, layer: int) -> str:
    """Return what usually makes the residual stream differ from a layer of the grown model on."""
    if comparison.growth_map.blocks[layer].kind != "kept":
        return "this block is new, and its output projections are not zero, so it adds to the residual stream"
    return "a matrix there whose columns were not divided by the number of copies they read"


@dataclass(frozen=True)
class LayerDrift:
    """The difference between the residual stream after one block of the grown model and the old stream."""

    layer: int
    old_layer: int | None
    """The old block it is compared with; None for the embeddings."""
    max_difference: float
    mean_difference: float
    scale: float
    """The largest entry of the old stream."""


def _drift_by_layer(comparison: ModelComparison) -> list[LayerDrift]:
    layers = []
    for block in range(len(comparison.new_trace.streams)):
        source = comparison.growth_map.old_block_at(block)
        affected = comparison.routing_changes.affected_positions[block].unsqueeze(-1)
        drift = comparison.drift(block).masked_fill(affected, 0.0)
        scale = float(comparison.old_stream(block).abs().max())
        layers.append(LayerDrift(block, source, float(drift.max()), float(drift.mean()), scale))
    return layers
