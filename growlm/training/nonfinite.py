"""NaN and infinity in training: where they are."""

from __future__ import annotations

import torch
from torch import nn

from growlm.errors import RunError

MOST_SKIPPED = 10
"""Steps skipped in a row before a run that may skip stops all the same."""


class NonFiniteError(RunError):
    """A loss, weight or gradient is NaN or infinite."""


def nonfinite_weight(model: nn.Module) -> str | None:
    """The first weight that holds NaN or infinity, in words."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name} holds {_what(parameter)}"
    return None


def nonfinite_gradient(model: nn.Module) -> str | None:
    """Likewise of gradients."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name} holds {_what(parameter.grad)}"
    return None


def _what(tensor: torch.Tensor) -> str:
    return "NaN" if torch.isnan(tensor).any() else "infinity"
