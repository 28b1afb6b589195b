"""NaN and infinity in training: where they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor
from growlm.runtime.errors import RunError

MAX_CONSECUTIVE_SKIPS = 10
"""Steps skipped in a row before a run that may skip stops all the same."""


class NonFiniteError(RunError):
    """A loss, weight or gradient is NaN or infinite."""


def describe_nonfinite_weight(model: nn.Module) -> str | None:
    """The first weight that holds NaN or infinity, in words."""
    found = _first_nonfinite(dict(model.named_parameters()))
    return None if found is None else f"the weight {found[0]} holds {found[1]}"


def describe_nonfinite_gradient(model: nn.Module) -> str | None:
    """Likewise of gradients."""
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = _first_nonfinite(gradients)
    return None if found is None else f"the gradient of {found[0]} holds {found[1]}"


@torch.no_grad()
def _first_nonfinite(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Name of the first tensor that is not finite, in whatever process, and what it holds."""
    for name, tensor in tensors.items():
        part = get_local_tensor(tensor)
        counts = torch.stack([part.isnan().sum(), part.isinf().sum()])
        num_nan, num_infinite = all_reduce_sum(counts, tensor).tolist()
        if num_nan or num_infinite:
            return name, "NaN" if num_nan else "infinity"
    return None
