"""Check 2, router scaling: every router still computes the same logits.

A router reads the residual stream. If its columns are not divided by the number of copies, its logits are
multiplied, the softmax sharpens and the mixture collapses onto few experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from growlm.growth.growth_map import GrowthMap
from growlm.runtime.number_format import format_magnitude
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison
from growlm.verification.model_output import explain_no_routings
from growlm.verification.weights import max_or_nan


def check_router_scaling(
    old_model: nn.Module,
    new_model: nn.Module,
    probe: Tensor,
    *,
    tolerance: float = 1e-4,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """Check that every router of the grown model computes the logits of the old one.

    The arguments are those of `ModelComparison`.
    """
    return report_router_scaling(
        ModelComparison(old_model, new_model, probe, growth_map=growth_map, tolerance=tolerance)
    )


def report_router_scaling(comparison: ModelComparison) -> CheckReport:
    """Report the router check for models that have been compared already."""
    if not comparison.new_trace.routings:
        summary = explain_no_routings(comparison.new_model)
        return CheckReport("router", Status.NOT_APPLICABLE, summary)
    if not comparison.old_trace.routings:
        summary = "the routers are new; their gates sum to one, so they cannot change the function"
        return CheckReport("router", Status.NOT_APPLICABLE, summary)
    choices = comparison.routing_changes
    old_magnitude = new_magnitude = worst = tolerance = 0.0
    num_routers = 0
    for block, old, new in comparison.matched_routers():
        num_routers += 1
        old_magnitude += float(old.logits.abs().mean())
        new_magnitude += float(new.logits.abs().mean())
        # A router reads its own block's attention output, so positions affected before the block are excused.
        excused = choices.affected_before(block).reshape(-1, 1)
        difference = comparison.router_difference(old, new).masked_fill(excused, 0.0)
        worst = max_or_nan(worst, float(difference.max()))
        tolerance = max(
            tolerance, comparison.router_tolerance(block, old, comparison.rounding_bounds)
        )
    figures = {
        "old_mean_magnitude": old_magnitude / num_routers,
        "new_mean_magnitude": new_magnitude / num_routers,
        "max_difference": worst,
        "tolerance": tolerance,
        "near_ties": choices.near_ties,
        "changed_choices": choices.hard_changes,
    }
    summary = (
        f"logits within {format_magnitude(worst)} (mean magnitude "
        f"{format_magnitude(figures['old_mean_magnitude'])} → "
        f"{format_magnitude(figures['new_mean_magnitude'])})"
    )
    if choices.near_ties:
        summary += f", {choices.near_ties} near ties resolved differently"
    if worst <= tolerance and not choices.hard_changes and comparison.is_finite:
        return CheckReport("router", Status.PASSED, summary, figures)
    if choices.hard_changes:
        summary += f", {choices.hard_changes} choices changed by more than rounding explains"
    if not comparison.growth_map.lossless:
        return CheckReport(
            "router", Status.FINDING, summary + "; this growth is not lossless", figures
        )
    summary += "; likely cause: router columns not divided by the number of copies they read"
    return CheckReport("router", Status.FAILED, summary, figures)
