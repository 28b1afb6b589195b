"""Check every grown tensor against its source tensor, as the growth map defines it, without running a model.

Running a model on a probe tells nothing about experts that no token chose, nor about rows that are read with
zero. The map defines what every entry must be, so this check sees all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import get_full_tensor
from growlm.growth.growth_map import GrowthMap
from growlm.growth.model_adapters import with_labels
from growlm.growth.transforms.reconstruction import Fault
from growlm.verification.check_report import CheckReport, Status

GrowthDtype = torch.dtype | Mapping[str, torch.dtype]
BLOCK_NUMBER = re.compile(r"\d+")
MAX_SHOWN_FAULTS = 3
"""The largest number of faults that the summary names."""
MAX_RECORDED_FAULTS = 50
"""The largest number of faults in the figures."""


@dataclass(frozen=True)
class TensorFault:
    """A fault of one tensor of the grown model."""

    tensor: str
    fault: Fault
    is_in_sum: bool
    """Whether the fault showed only after copies were summed, or the tensor is missing, unexpected or of
    wrong shape."""

    def __str__(self) -> str:
        return f"{self.tensor}: {self.fault}"


@dataclass(frozen=True)
class WeightFaults:
    """The faults of a grown model's tensors."""

    num_tensors: int
    """The number of tensors that were checked."""
    num_random: int
    """The number of them that are random and hold nothing of the old model."""
    faults: list[TensorFault]
    noise_residue: float
    """The largest difference between a sum of copies and its source, in standard deviations of the source."""


def check_weight_integrity(
    old_model: nn.Module,
    new_model: nn.Module,
    *,
    growth_map: GrowthMap | None = None,
    growth_dtype: GrowthDtype | None = None,
) -> CheckReport:
    """Check that every tensor of a grown model is what the growth map makes of the old model's tensors.

    Args:
        old_model: Model before the growth.
        new_model: Model after it.
        growth_map: Map from the old model to the new one; inferred if not given.
        growth_dtype: Precision that the weights were grown in, if they have been converted since; one for all, or
            one for each tensor of the new model.

    Raises:
        ValueError: If no growth leads from one config to the other.
    """
    from growlm.verification.comparison import infer_growth_from_models

    old_model, new_model = with_labels(old_model), with_labels(new_model)
    growth_map = growth_map or infer_growth_from_models(old_model, new_model, growth_dtype)
    return report_weight_integrity(
        find_weight_faults(old_model.state_dict(), new_model.state_dict(), growth_map, growth_dtype)
    )


@torch.no_grad()
def find_weight_faults(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    growth_map: GrowthMap,
    growth_dtype: GrowthDtype | None = None,
    *,
    first_only: bool = False,
) -> WeightFaults:
    """Compare all tensors of two models, one at a time; with sharded tensors, all processes must call it.

    Args:
        old: Tensors before the growth, by name.
        new: Tensors after it, by name.
        growth_map: Map from the old tensors to the new ones.
        growth_dtype: Precision that the weights were grown in, if they have been converted since; one for all, or
            one for each tensor of the new model.
        first_only: Whether to stop at the first tensor with a fault.
    """
    shared_state: dict[Any, Tensor] = {}
    faults, residue, num_random = [], 0.0, 0
    for name in sorted(new.keys() - growth_map.tensors.keys()):
        faults.append(TensorFault(name, Fault("is not a tensor of the grown model"), True))
    for name, tensor_map in growth_map.tensors.items():
        if first_only and faults:
            break
        if name not in new or tuple(new[name].shape) != tensor_map.shape:
            shape = tuple(new[name].shape) if name in new else "missing"
            fault = Fault(f"is {shape}, expected {tensor_map.shape}")
            faults.append(TensorFault(name, fault, True))
            continue
        source = _make_source_getter(old, tensor_map.source, new[name])
        result = tensor_map.reconstruct(
            get_full_tensor(new[name]),
            source,
            dtype_of(growth_dtype, name, new[name]),
            shared_state,
        )
        faults += [TensorFault(name, fault, result.is_summed) for fault in result.faults]
        num_random += result.is_random
        if result.is_summed and not result.is_done:
            residue = max_or_nan(residue, _noise_residue(result.x, source()))
    return WeightFaults(len(growth_map.tensors), num_random, faults, residue)


def dtype_of(growth_dtype: GrowthDtype | None, name: str, tensor: Tensor) -> torch.dtype:
    """Return the precision that a tensor was grown in; the present one if none is given."""
    if isinstance(growth_dtype, Mapping):
        return growth_dtype.get(name, tensor.dtype)
    return growth_dtype or tensor.dtype


def coarsest_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the precision with the largest rounding error."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def stored_dtypes(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the precision that each tensor of two checkpoints has been rounded to, by the new tensors' names.

    A checkpoint may have been converted before or after the growth, and its tensors may differ in precision: each
    counts with the coarser one of its own and that of the old tensors of its kind (the same name in any block).
    """
    kinds: dict[str, torch.dtype] = {}
    for name, tensor in old.items():
        kind = BLOCK_NUMBER.sub("", name)
        kinds[kind] = coarsest_dtype([tensor.dtype, kinds.get(kind, tensor.dtype)])
    of_others = coarsest_dtype(kinds.values())
    return {
        name: coarsest_dtype([tensor.dtype, kinds.get(BLOCK_NUMBER.sub("", name), of_others)])
        for name, tensor in new.items()
    }


def report_weight_integrity(weight_faults: WeightFaults) -> CheckReport:
    """Report the weight check for tensors that have been compared already."""
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
        summary = f"all {weight_faults.num_tensors} tensors match the growth map, up to rounding"
        if weight_faults.num_random:
            summary += f"; {weight_faults.num_random} of them are random"
        return CheckReport("weights", Status.PASSED, summary, figures)
    tensors = dict.fromkeys(each.tensor for each in weight_faults.faults)
    summary = (
        f"{len(tensors)} of {weight_faults.num_tensors} tensors do not match the growth map: "
        + "; ".join(str(each) for each in weight_faults.faults[:MAX_SHOWN_FAULTS])
    )
    if len(weight_faults.faults) > MAX_SHOWN_FAULTS:
        summary += f"; and {len(weight_faults.faults) - MAX_SHOWN_FAULTS} more faults"
    return CheckReport("weights", Status.FAILED, summary, figures)


def max_or_nan(*values: float) -> float:
    """Return the largest number, or NaN if one is NaN; the result of Python's `max` would depend on the order."""
    return math.nan if any(value != value for value in values) else max(values)


def _make_source_getter(
    old: Mapping[str, Tensor], source: str | None, like: Tensor
) -> Callable[[], Tensor]:
    return lambda: get_full_tensor(like if source is None else old[source])


def _noise_residue(x: Tensor, source: Tensor) -> float:
    source = source.to(x.dtype)
    spread = float(source.std(correction=0))
    return float((x - source).abs().max()) / (spread or 1.0)
