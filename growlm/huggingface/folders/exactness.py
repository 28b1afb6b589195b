"""Say what of a growth is exact in the precision of its weights, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping

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
