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

from growlm.distributed.dtensors import get_full_tensor
from growlm.growth.growth_map import GrowthMap
from growlm.growth.transforms.reconstruction import Fault
from growlm.model.transformer import TransformerLM
from growlm.verification.check_report import CheckReport, Status

MAX_SHOWN_FAULTS = 3
"""Faults that the summary names."""
MAX_RECORDED_FAULTS = 50
"""Faults in the figures."""


@dataclass(frozen=True)
class TensorFault:
    """A fault of one tensor of the grown model."""

    tensor: str
    fault: Fault
    is_in_sum: bool
    """Whether copies have been added up before it showed, or the tensor has not even the shape for it."""

    def __str__(self) -> str:
        return f"{self.tensor}: {self.fault}"


@dataclass(frozen=True)
class WeightFaults:
    """What is wrong with a grown model's tensors."""

    num_tensors: int
    """How many were checked."""
    num_random: int
    """How many of them are drawn at random, and hold nothing of the old model."""
    faults: list[TensorFault]
    noise_residue: float
    """Largest difference between a sum of copies and its source, in standard deviations of the source."""


def check_weight_integrity(
    old_model: TransformerLM,
    new_model: TransformerLM,
    *,
    growth_map: GrowthMap | None = None,
    growth_dtype: torch.dtype | None = None,
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
    from growlm.verification.comparison import infer_growth_from_models

    growth_map = growth_map or infer_growth_from_models(old_model, new_model, growth_dtype)
    return report_weight_integrity(
        find_weight_faults(old_model.state_dict(), new_model.state_dict(), growth_map, growth_dtype)
    )


@torch.no_grad()
def find_weight_faults(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    growth_map: GrowthMap,
    growth_dtype: torch.dtype | None = None,
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
        source = _make_source_getter(old, tensor_map.source, new[name])
        found = tensor_map.reconstruct(
            get_full_tensor(new[name]), source, growth_dtype or new[name].dtype, session
        )
        faults += [TensorFault(name, fault, found.is_summed) for fault in found.faults]
        drawn += found.is_random
        if found.is_summed and not found.is_done:
            residue = max_or_nan(residue, _noise_residue(found.x, source()))
    return WeightFaults(len(growth_map.tensors), drawn, faults, residue)


def report_weight_integrity(weight_faults: WeightFaults) -> CheckReport:
    """The check on tensors that are compared already."""
    figures = {
        "tensors": weight_faults.num_tensors,
        "drawn_tensors": weight_faults.num_random,
        "faults": [
            {
                "tensor": each.tensor,
                "what": each.fault.message,
                "difference": each.fault.difference,
                "allowed": each.fault.tolerance,
            }
            for each in weight_faults.faults[:MAX_RECORDED_FAULTS]
        ],
    }
    if not weight_faults.faults:
        summary = f"all {weight_faults.num_tensors} tensors are what the growth makes of the old ones, up to rounding"
        if weight_faults.num_random:
            summary += f"; {weight_faults.num_random} of them are drawn at random"
        return CheckReport("weights", Status.PASSED, summary, figures)
    tensors = dict.fromkeys(each.tensor for each in weight_faults.faults)
    summary = (
        f"{len(tensors)} of {weight_faults.num_tensors} tensors are not what the growth makes of the old ones: "
        + "; ".join(str(each) for each in weight_faults.faults[:MAX_SHOWN_FAULTS])
    )
    if len(weight_faults.faults) > MAX_SHOWN_FAULTS:
        summary += f"; and {len(weight_faults.faults) - MAX_SHOWN_FAULTS} more faults"
    return CheckReport("weights", Status.FAILED, summary, figures)


def max_or_nan(*values: float) -> float:
    """The largest number; NaN if one is. Python's `max` depends on the order then."""
    return math.nan if any(value != value for value in values) else max(values)


def _make_source_getter(
    old: Mapping[str, Tensor], source: str | None, like: Tensor
) -> Callable[[], Tensor]:
    return lambda: get_full_tensor(like if source is None else old[source])


def _noise_residue(x: Tensor, source: Tensor) -> float:
    source = source.to(x.dtype)
    spread = float(source.std(correction=0))
    return float((x - source).abs().max()) / (spread or 1.0)
