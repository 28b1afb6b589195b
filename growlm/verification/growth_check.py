"""Run all checks of a growth and collect them in one report."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growlm.growth.growth_map import GrowthMap
from growlm.verification.check_report import CheckReport, GrowthReport, Status
from growlm.verification.comparison import ModelComparison
from growlm.verification.expert_movement import count_expert_movement
from growlm.verification.functional import report_functional_identity
from growlm.verification.rope import report_rope_integrity
from growlm.verification.router import report_router_scaling
from growlm.verification.symmetry import report_symmetry_breaking
from growlm.verification.weights import GrowthDtype, report_weight_integrity


def detailed_growth_check(
    *,
    old_model: nn.Module,
    new_model: nn.Module,
    probe: Tensor,
    device: torch.device | str,
    scale_factor: float | None = None,
    tolerance: float = 1e-4,
    growth_map: GrowthMap | None = None,
    require_symmetry_breaking: bool = False,
    unequal_moments: bool = False,
    growth_dtype: GrowthDtype | None = None,
) -> GrowthReport:
    """Check RoPE integrity, router scaling, symmetry breaking, functional identity and weight integrity.

    Args:
        old_model: Model before the growth; moved to `device`, as is the grown one.
        new_model: Model after it.
        probe: Tokens, (batch, time).
        device: Device to run on.
        scale_factor: Expected growth of the width; None to skip this check.
        tolerance: Relative tolerance: differences of logits up to tolerance · max(1, max |logit|) count as
            rounding; see `ModelComparison`.
        growth_map: Map from the old model to the new one; inferred from the configs if not given.
        require_symmetry_breaking: Whether equal duplicates fail the check instead of being a finding.
        unequal_moments: Whether the optimizer's state makes equal duplicates diverge (`optimizer_state:
            asymmetric`).
        growth_dtype: Precision that the weights were grown in, if they have been converted since; one for all, or
            one for each tensor of the new model.

    Returns:
        The report, which is truthy if no check failed.

    Raises:
        ValueError: If no growth leads from one config to the other.
    """
    comparison = ModelComparison(
        old_model.to(device),
        new_model.to(device),
        probe,
        growth_map=growth_map,
        tolerance=tolerance,
        scale_factor=scale_factor,
        growth_dtype=growth_dtype,
    )
    symmetry = report_symmetry_breaking(comparison, unequal_moments)
    if require_symmetry_breaking and symmetry.status is Status.FINDING:
        symmetry = CheckReport("symmetry", Status.FAILED, symmetry.summary, symmetry.figures)
    return GrowthReport(
        checks={
            "rope": report_rope_integrity(comparison),
            "router": report_router_scaling(comparison),
            "symmetry": symmetry,
            "functional": report_functional_identity(comparison),
            "weights": report_weight_integrity(comparison.weight_faults),
        },
        loss_before=comparison.old_trace.loss,
        loss_after=comparison.new_trace.loss,
        max_logit_difference=comparison.max_logit_difference,
        tolerance=comparison.tolerance,
        lossless=comparison.growth_map.lossless,
        expert_movement=count_expert_movement(comparison),
    )
