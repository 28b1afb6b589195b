"""Measure the standard deviation of weights: what new weights and noise are drawn with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SUMMED_ENTRIES = 2**15
"""Entries that are summed at once. Torch shares larger sums among its threads, so that the last bits of the
result would depend on their number."""


def compute_matrix_std(x: Tensor) -> Tensor:
    """Return the standard deviation of each matrix of a stack, or of all entries below 3 dimensions.

    Sums and roots are in fp64 until the end: torch takes `sqrt` of fp32 tensors from MKL, whose last bits differ
    between processors of Intel and of AMD, so that the same seed would give other weights.

    Args:
        x: Weights, shaped (..., rows, columns) or (entries,), in any floating dtype.

    Returns:
        The standard deviation in the dtype of `x`, shaped to multiply it: (stack, 1, 1) or a scalar.
    """
    stacked = x.ndim >= 3
    rows = x if x.ndim > 1 else x.unsqueeze(-1)
    dims = tuple(range(int(stacked), rows.ndim))
    size = math.prod(rows.shape[dim] for dim in dims)
    entries_of_a_row = max(rows.numel() // max(rows.shape[-2], 1), 1)
    total = total_of_squares = torch.zeros((), dtype=torch.float64, device=x.device)
    # Not `Tensor.std`, which takes ten times as long, and not the whole tensor in fp64 at once.
    for part in rows.split(max(MAX_SUMMED_ENTRIES // entries_of_a_row, 1), dim=-2):
        values = part.double()
        total = total + values.sum(dim=dims, keepdim=stacked)
        total_of_squares = total_of_squares + values.square().sum(dim=dims, keepdim=stacked)
    variance = total_of_squares / size - (total / size).square()
    return variance.clamp(min=0).sqrt().to(x.dtype)
