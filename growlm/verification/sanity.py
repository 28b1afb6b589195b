"""Check whether a single model is in working order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor
from growlm.runtime.number_format import format_magnitude
from growlm.verification.comparison import (
    find_nonfinite_tensors,
    full_precision_eval,
    half_precision_tolerance,
    probe_loss,
)
from growlm.verification.model_output import compute_logits


@dataclass(frozen=True)
class SanityReport:
    """The results of a sanity check. Truthy if there is no problem."""

    label: str
    loss: float
    uniform_loss: float
    """ln(vocabulary size): the loss of a uniform guess."""
    max_logit: float
    gradient_norm: float
    problems: list[str]

    def __bool__(self) -> bool:
        return not self.problems


def quick_sanity_check(
    model: nn.Module, probe: Tensor, device: torch.device | str, label: str = "Model"
) -> SanityReport:
    """Check for finite weights, logits and gradients, causal attention, and a loss that trains all parameters.

    Args:
        model: Model to check; moved to `device`. Gradients it holds are dropped.
        probe: Tokens, (batch, time), at least two tokens long.
        device: Device to run on.
        label: Name of the model in the report.
    """
    model.to(device)
    probe = probe.to(device)
    problems = []
    model.zero_grad(set_to_none=True)
    with full_precision_eval(model), torch.enable_grad():
        logits = compute_logits(model, probe)
        vocab_size = logits.shape[-1]
        loss = probe_loss(logits, probe)
        loss.backward()
        last_changed = probe.clone()
        last_changed[:, -1] = (probe[:, -1] + 1) % vocab_size
        with torch.no_grad():
            changed = compute_logits(model, last_changed)
            leak = float((changed[:, :-1] - logits.detach()[:, :-1]).abs().max())
    if nonfinite := find_nonfinite_tensors(model):
        problems.append(f"weights are not finite in: {', '.join(nonfinite)}")
    if not torch.isfinite(logits).all():
        problems.append("logits are not finite")
    # Not exactly zero, because a mixture's rounding depends on how many tokens each expert gets.
    share = max(1e-4, half_precision_tolerance(logits.dtype))
    if not leak <= share * float(logits.detach().abs().max()):
        problems.append(f"logits depend on a later token (by {format_magnitude(leak)})")
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    unreached = [name for name, gradient in gradients.items() if gradient is None]
    if unreached:
        problems.append(f"the loss does not reach {', '.join(unreached)}")
    reached = {name: g for name, g in gradients.items() if g is not None}
    broken = [
        n for n, g in reached.items() if all_reduce_sum((~get_local_tensor(g).isfinite()).sum(), g)
    ]
    if broken:
        problems.append(f"gradients are not finite in: {', '.join(broken)}")
    norm = math.sqrt(
        sum(float(all_reduce_sum(get_local_tensor(g).square().sum(), g)) for g in reached.values())
    )
    model.zero_grad(set_to_none=True)
    return SanityReport(
        label=label,
        loss=float(loss.detach()),
        uniform_loss=math.log(vocab_size),
        max_logit=float(logits.detach().abs().max()),
        gradient_norm=norm,
        problems=problems,
    )
