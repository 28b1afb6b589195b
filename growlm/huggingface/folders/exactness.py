"""Say what of a growth is exact in the precision of its weights, before any weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch

from growlm.growth.growth_map import GrowthMap, TensorMap
from growlm.growth.transforms.scale_factors import unit_factors

BLOCK_INDEX = re.compile(r"\.\d+\.")


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
    for dtype in dict.fromkeys(dtypes.values()):
        names = [name for name in growth_map.tensors if dtypes[name] == dtype]
        lines += _describe_rounding(growth_map, names, dtype)
    return lines


def _describe_rounding(growth_map: GrowthMap, names: list[str], dtype: torch.dtype) -> list[str]:
    """Return what the growth rounds of tensors of one precision."""
    name = str(dtype).removeprefix("torch.")
    scaled: dict[str, None] = {}
    noisy: dict[str, None] = {}
    for each in names:
        tensor_map = growth_map.tensors[each]
        kind = BLOCK_INDEX.sub(".*.", each)
        if tensor_map.source is None or tensor_map.keeps_weight:
            continue
        if has_noise(tensor_map):
            noisy[kind] = None
        elif is_scaled(tensor_map, growth_map.old_shapes[tensor_map.source]):
            scaled[kind] = None
    if not scaled and not noisy:
        return [f"In {name}, no entry is rounded: factors are powers of two."]
    is_half = dtype.itemsize < 4
    hint = "; dtype=float32 keeps them to 24 bits" if is_half else ""
    lines = []
    if scaled:
        lines.append(f"In {name}, rounded after scaling{hint}: {', '.join(scaled)}.")
    if noisy:
        lines.append(
            f"In {name}, copies with noise sum to their source up to rounding{hint}: {', '.join(noisy)}."
        )
    return lines


def has_noise(tensor_map: TensorMap) -> bool:
    """Return whether copies in a tensor get noise."""
    dims = range(len(tensor_map.shape))
    return any(step.adds_noise_along(dim) for step in tensor_map.transforms for dim in dims)


def is_scaled(tensor_map: TensorMap, old_shape: tuple[int, ...]) -> bool:
    """Return whether entries are multiplied by a factor that is no power of two, or are means of others."""
    if any(step.fill is not None and step.fill.kind == "mean" for step in tensor_map.transforms):
        return True
    factors = tensor_map.scale_factors(unit_factors(old_shape))
    found = {value for each in factors for value in each.weight.unique().tolist()}
    return any(math.frexp(value)[0] != 0.5 for value in found if value > 0)
