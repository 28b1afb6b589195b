"""What a growth cannot keep exactly in half precision, and by how much that moves the logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from growlm.growth.transforms.half_precision import HALF_DTYPES

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
    """Return the precision of one tensor."""
    return dtype[name] if isinstance(dtype, Mapping) else dtype


def expected_logit_change(inexact: Iterable[InexactTensor]) -> float:
    """Return the expected change of the logits, as a share of their standard deviation.

    Every rescaled tensor moves what passes through it by the relative error of one rounding; errors of different
    tensors are independent, so that their squares add up. Measured changes are in docs/results/half_precision.md.
    """
    squares = ((MEAN_RELATIVE_ROUNDING * torch.finfo(each.dtype).eps) ** 2 for each in inexact)
    return math.sqrt(sum(squares))


def describe_rounding(inexact: Sequence[InexactTensor], dtypes: Iterable[torch.dtype]) -> list[str]:
    """Return what half precision rounds, one line each, for people; empty without half precision.

    Args:
        inexact: Tensors that are rounded.
        dtypes: Precisions of all tensors.
    """
    half = [str(dtype).removeprefix("torch.") for dtype in HALF_DTYPES if dtype in set(dtypes)]
    if not half:
        return []
    name = " and ".join(half)
    if not inexact:
        return [f"Nothing is rounded in {name}: copies of a weight add up to it, to the bit"]
    counts = Counter(each.reason for each in inexact)
    parts = "; ".join(
        f"{n} tensor{'s' if n > 1 else ''} ({reason})" for reason, n in counts.items()
    )
    return [
        f"Rounded in {name}: {parts}. All other tensors are exact",
        f"Rounding is expected to move the logits by {expected_logit_change(inexact):.1%} of their standard "
        "deviation; with dtype=float32 it does not",
    ]
