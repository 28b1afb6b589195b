"""Find NaN and infinity in weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor
from growlm.runtime.errors import RunError

MAX_CONSECUTIVE_SKIPS = 10
"""Skipped steps in a row after which a run stops, even with `trainer.on_nonfinite=skip`."""

NAN_PAGE = "docs/troubleshooting.md#nan-and-infinity"
"""Page that describes causes and remedies."""


class NonFiniteError(RunError):
    """Error raised when a loss, weight or gradient is NaN or infinite."""


def describe_nonfinite_weight(model: nn.Module) -> str | None:
    """Return a description of the first weight that holds NaN or infinity; None if there is none."""
    found = _first_nonfinite(dict(model.named_parameters()))
    return None if found is None else f"the weight {found[0]} holds {found[1]}"


def describe_nonfinite_gradient(model: nn.Module) -> str | None:
    """Return a description of the first gradient that holds NaN or infinity; None if there is none."""
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = _first_nonfinite(gradients)
    return None if found is None else f"the gradient of {found[0]} holds {found[1]}"


@torch.no_grad()
def _first_nonfinite(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the name of the first tensor that is not finite on any rank, and what it holds."""
    for name, tensor in tensors.items():
        local = get_local_tensor(tensor)
        counts = torch.stack([local.isnan().sum(), local.isinf().sum()])
        num_nan, num_infinite = all_reduce_sum(counts, tensor).tolist()
        if num_nan or num_infinite:
            return name, "NaN" if num_nan else "infinity"
    return None
