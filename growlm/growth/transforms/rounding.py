"""What a growth cannot keep exactly in half precision, and by how much that moves the logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from growlm.growth.transforms.half_precision import HALF_DTYPES
from growlm.runtime.number_format import format_fine_share

MEAN_RELATIVE_ROUNDING = 0.21
"""Standard deviation of the relative error of one rounding, in units of `eps`: from sqrt(1/12) at a power of two
down to half of that below the next one."""

WeightDtypes = torch.dtype | Mapping[str, torch.dtype]
"""Precision of a grown model's tensors: one for all, or one for each name."""


@dataclass(frozen=True)
class InexactTensor:
    """A tensor of the grown model that rounding changes."""

    name: str
    reason: str
    """What is rounded, to follow the name."""
    dtype: torch.dtype


def dtype_of_tensor(dtype: WeightDtypes, name: str) -> torch.dtype:
    """Return the precision of one tensor; fp32 if it is not among those that are given."""
    return dtype.get(name, torch.float32) if isinstance(dtype, Mapping) else dtype


def expected_logit_change(inexact: Iterable[InexactTensor], has_routers: bool) -> float:
    """Return the expected change of the logits, as a share of their standard deviation.

    Every rescaled tensor moves what passes through it by the relative error of one rounding; errors of different
    tensors are independent, so that their squares add up. Routers amplify that: a token near the boundary
    between two experts goes to the other one, and the number of such tokens grows with the error, so that the
    square of the change does. docs/results/half_precision.md has the measurements; with routers they are
    between half and twice the estimate in bf16, and differ more in fp16.

    Args:
        inexact: Tensors that are rounded.
        has_routers: Whether the model before the growth is a mixture of experts that differ.
    """
    square = sum((MEAN_RELATIVE_ROUNDING * torch.finfo(each.dtype).eps) ** 2 for each in inexact)
    return math.sqrt(square + math.sqrt(square) * has_routers)


def describe_rounding(
    inexact: Sequence[InexactTensor], dtypes: Iterable[torch.dtype], has_routers: bool
) -> list[str]:
    """Return what half precision rounds, one line each, for people; empty without half precision.

    Args:
        inexact: Tensors that are rounded.
        dtypes: Precisions of all tensors.
        has_routers: Whether the model before the growth is a mixture of experts that differ.
    """
    found = set(dtypes)
    name = " and ".join(str(d).removeprefix("torch.") for d in HALF_DTYPES if d in found)
    if not name:
        return []
    if not inexact:
        return [f"Nothing is rounded in {name}: copies of a weight add up to it, to the bit"]
    counts = Counter(each.reason for each in inexact)
    parts = "; ".join(f"{n} tensor{'s'[: n > 1]} ({reason})" for reason, n in counts.items())
    change = f"{format_fine_share(expected_logit_change(inexact, has_routers))} of their standard deviation"
    where = ", mostly where a token goes to another expert" if has_routers else ""
    return [
        f"Rounded in {name}: {parts}; all other tensors are exact",
        f"Rounding is expected to move the logits by about {change}{where}; with dtype=float32 it does not",
    ]
