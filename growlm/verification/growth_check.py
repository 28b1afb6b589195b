"""All checks of a growth together."""

from __future__ import annotations

import torch
from torch import Tensor

from growlm.growth.growth_map import GrowthMap
from growlm.model.transformer import TransformerLM
from growlm.verification.check_report import CheckReport, GrowthReport, Status
from growlm.verification.comparison import ModelComparison
from growlm.verification.functional import report_functional_identity
from growlm.verification.rope import report_rope_integrity
from growlm.verification.router import report_router_scaling
from growlm.verification.symmetry import report_symmetry_breaking
from growlm.verification.weights import report_weight_integrity


def detailed_growth_check(
    *,
    old_model: TransformerLM,
    new_model: TransformerLM,
    probe: Tensor,
    device: torch.device | str,
    scale_factor: float | None = None,
    tolerance: float = 1e-4,
    growth_map: GrowthMap | None = None,
    require_symmetry_breaking: bool = False,
    unequal_moments: bool = False,
    growth_dtype: torch.dtype | None = None,
) -> GrowthReport:
    """RoPE integrity, router scaling, symmetry breaking, functional identity and weight integrity.

    Args:
        old_model: Before the growth; moved to `device`, as is the grown one.
        new_model: After it.
        probe: Tokens, (batch, time).
        device: Where to run.
        scale_factor: What the width is expected to have grown by, if it is to be checked.
        tolerance: Differences of logits up to tolerance · max(1, max |logit|) are rounding; see `Comparison`.
        growth_map: How one became the other; inferred from the configs if not given.
        require_symmetry_breaking: Fail where twins stay equal, in place of a finding.
        unequal_moments: The optimizer's state parts equal twins (`optimizer_state: asymmetric`).
        stored_as: As for `Comparison`.

    Returns:
        The report; it is true if no check failed.

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
    )
