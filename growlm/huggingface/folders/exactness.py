"""Say what of a growth is exact in the precision of its weights, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from growlm.growth.growth_map import GrowthMap


def describe_exactness(growth_map: GrowthMap, dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Return what of a growth is exact and what is rounded, one statement each.

    Args:
        growth_map: Growth of a model.
        dtypes: Precision that each tensor of the grown model is computed in, by growlm's names.
    """
    if growth_map.lossless:
        lines = ["The grown model computes what the model before the growth computes."]
    else:
        lines = ["The growth itself changes what the model computes; train the grown model."]
    num_kept = sum(each.keeps_weight for each in growth_map.tensors.values())
    if num_kept:
        lines.append(
            f"{num_kept} of {len(growth_map.tensors)} tensors are copies of the source's, to the bit."
        )
    full = {dtype for dtype in dtypes.values() if dtype.itemsize >= 4}
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in full))
    if names:
        lines.append(f"In {names}, what is scaled or gets noise is exact up to rounding.")
    return lines + [f"{line}." for line in growth_map.describe_rounding(dict(dtypes))]


def describe_conversion(before: Iterable[torch.dtype], after: Iterable[torch.dtype]) -> list[str]:
    """Return whether the weights are rounded by a conversion before the growth, as at most one statement.

    Args:
        before: Dtypes of the source's files.
        after: Dtypes that the grown tensors are computed in.
    """
    kept = set(after)
    lost = {
        dtype
        for dtype in before
        if dtype.is_floating_point
        and all(torch.promote_types(dtype, each) != each for each in kept)
    }
    if not lost:
        return []
    old, new = (
        " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
        for dtypes in (lost, kept)
    )
    return [
        f"Weights in {old} are converted to {new} before the growth, which rounds them; all else that is said of "
        "precision is about the converted weights"
    ]
