"""Compare a model's logits with those of the model grown from it, on a probe."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from growlm.growth.growth_map import GrowthMap
from growlm.verification.comparison import ModelComparison, find_nonfinite_tensors


@dataclass(frozen=True)
class EquivalenceReport:
    """Differences of logits.

    Truthy if all are within the tolerance, no choice of experts changed, and all tensors are finite.
    """

    max_difference: float
    by_sequence: list[float]
    """The largest difference in each sequence of the probe."""
    tolerance: float
    near_ties: int
    """Choices of experts that rounding changed; the positions they affect are left out."""
    changed_choices: int
    """Choices of experts that changed without being near ties."""
    nonfinite: list[str] = field(default_factory=list)
    """Tensors of the new model that hold NaN or infinity, including those that the probe does not reach."""

    def __bool__(self) -> bool:
        is_near = self.max_difference <= self.tolerance
        return is_near and not self.changed_choices and not self.nonfinite


def verify_functional_equivalence(
    old: nn.Module,
    new: nn.Module,
    probe: Tensor,
    device: torch.device | str,
    tolerance: float = 1e-4,
    growth_map: GrowthMap | None = None,
) -> EquivalenceReport:
    """Compare the logits of two models on a probe.

    Args:
        old: Model before a growth; moved to `device`, as is the new one.
        new: Model after it.
        probe: Tokens, (batch, time).
        device: Device to run on.
        tolerance: Relative tolerance: differences up to tolerance · max(1, max |logit|) count as rounding;
            see `ModelComparison`.
        growth_map: Map from the old model to the new one; inferred if not given, as in `ModelComparison`.
    """
    comparison = ModelComparison(
        old.to(device), new.to(device), probe, growth_map=growth_map, tolerance=tolerance
    )
    return EquivalenceReport(
        max_difference=comparison.max_logit_difference,
        by_sequence=comparison.logit_differences.amax(dim=(1, 2)).tolist(),
        tolerance=comparison.tolerance,
        near_ties=comparison.routing_changes.near_ties,
        changed_choices=comparison.routing_changes.hard_changes,
        nonfinite=find_nonfinite_tensors(new),
    )
