"""Check every grown tensor against the one it was made of, as the growth map says; no model is run.

A model that is run on a probe tells nothing about experts that no token chose, nor about rows that are read with
zero. The map knows what every entry must be, so this check sees all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from growlm.distributed.dtensors import whole
from growlm.growth.growth_map import GrowthMap
from growlm.growth.transforms.reconstruction import Fault
from growlm.model.transformer import TransformerLM
from growlm.verification.check_report import CheckReport, Status

SHOWN = 3
"""Faults that the summary names."""
RECORDED = 50
"""Faults in the figures."""


@dataclass(frozen=True)
class TensorFault:
    """A fault of one tensor of the grown model."""

    tensor: str
    fault: Fault
    is_sum: bool
    """Whether copies have been added up before it showed, or the tensor has not even the shape for it."""

    def __str__(self) -> str:
        return f"{self.tensor}: {self.fault}"


@dataclass(frozen=True)
class WeightFaults:
    """What is wrong with a grown model's tensors."""

    tensors: int
    """How many were checked."""
    drawn: int
    """How many of them are drawn at random, and hold nothing of the old model."""
    faults: list[TensorFault]
    residue: float
    """Largest difference between a sum of copies and its source, in standard deviations of the source."""


def check_weight_integrity(
    old_model: TransformerLM,
    new_model: TransformerLM,
    *,
    growth_map: GrowthMap | None = None,
    stored_as: torch.dtype | None = None,
) -> CheckReport:
    """Check that every tensor of a grown model is what the growth makes of the old one; see the module.

    Args:
        old_model: Before the growth.
        new_model: After it.
        growth_map: How one became the other; inferred if not given.
        stored_as: The precision that the weights were grown in, where they have been brought to another since.

    Raises:
        ValueError: If no growth leads from one config to the other.
    """
    from growlm.verification.comparison import infer_growth_of

    growth_map = growth_map or infer_growth_of(old_model, new_model, stored_as)
    return weight_integrity(
        find_faults(old_model.state_dict(), new_model.state_dict(), growth_map, stored_as)
    )


@torch.no_grad()
def find_faults(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    growth_map: GrowthMap,
    stored_as: torch.dtype | None = None,
    *,
    first_only: bool = False,
) -> WeightFaults:
    """Compare all tensors of two models, one at a time; where they are sharded, all processes must ask for it.

    Args:
        old: The tensors before the growth, by name.
        new: Those after it.
        growth_map: How they became these.
        stored_as: As for `check_weight_integrity`.
        first_only: Stop at the first tensor with a fault.
    """
    session: dict[Any, Tensor] = {}
    faults, residue, drawn = [], 0.0, 0
    for name in sorted(new.keys() - growth_map.tensors.keys()):
        faults.append(TensorFault(name, Fault("is no tensor of the grown model"), True))
    for name, tensor_map in growth_map.tensors.items():
        if first_only and faults:
            break
        if name not in new or tuple(new[name].shape) != tensor_map.shape:
            shape = tuple(new[name].shape) if name in new else "missing"
            fault = Fault(f"is {shape}, expected {tensor_map.shape}")
            faults.append(TensorFault(name, fault, True))
            continue
        source = _getter(old, tensor_map.source, new[name])
        found = tensor_map.reconstruct(
            whole(new[name]), source, stored_as or new[name].dtype, session
        )
        faults += [TensorFault(name, fault, found.is_summed) for fault in found.faults]
        drawn += found.is_drawn
        if found.is_summed and not found.is_done:
            residue = max_or_nan(residue, _residue(found.x, source()))
    return WeightFaults(len(growth_map.tensors), drawn, faults, residue)


def weight_integrity(found: WeightFaults) -> CheckReport:
    """The check on tensors that are compared already."""
    figures = {
        "tensors": found.tensors,
        "drawn_tensors": found.drawn,
        "faults": [
            {
                "tensor": each.tensor,
                "what": each.fault.what,
                "difference": each.fault.difference,
                "allowed": each.fault.allowed,
            }
            for each in found.faults[:RECORDED]
        ],
    }
    if not found.faults:
        summary = (
            f"all {found.tensors} tensors are what the growth makes of the old ones, up to rounding"
        )
        if found.drawn:
            summary += f"; {found.drawn} of them are drawn at random"
        return CheckReport("weights", Status.PASSED, summary, figures)
    tensors = dict.fromkeys(each.tensor for each in found.faults)
    summary = (
        f"{len(tensors)} of {found.tensors} tensors are not what the growth makes of the old ones: "
        + "; ".join(str(each) for each in found.faults[:SHOWN])
    )
    if len(found.faults) > SHOWN:
        summary += f"; and {len(found.faults) - SHOWN} more faults"
    return CheckReport("weights", Status.FAILED, summary, figures)


def max_or_nan(*values: float) -> float:
    """The largest number; NaN if one is. Python's `max` depends on the order then."""
    return math.nan if any(value != value for value in values) else max(values)


def _getter(old: Mapping[str, Tensor], source: str | None, like: Tensor) -> Callable[[], Tensor]:
    return lambda: whole(like if source is None else old[source])


def _residue(x: Tensor, source: Tensor) -> float:
    source = source.to(x.dtype)
    spread = float(source.std(correction=0))
    return float((x - source).abs().max()) / (spread or 1.0)
