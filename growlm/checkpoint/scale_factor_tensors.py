"""Turn scale factors into named tensors, as files hold them, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from growlm.growth.transforms.scale_factors import DimFactors, ScaleFactors

PREFIX = "scale_factors"


def flatten_factors(factors: Mapping[str, ScaleFactors]) -> dict[str, Tensor]:
    """Return scale factors under names `scale_factors.PARAMETER.DIMENSION.FIELD`."""
    return {
        f"{PREFIX}.{name}.{dim}.{field}": value.to(torch.uint8) if field == "original" else value
        for name, dims in factors.items()
        for dim, factor in enumerate(dims)
        for field, value in vars(factor).items()
    }


def unflatten_factors(tensors: Mapping[str, Tensor]) -> dict[str, ScaleFactors]:
    """Return the scale factors among named tensors; the inverse of `flatten_factors`."""
    found: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for full_name, tensor in tensors.items():
        if full_name.startswith(f"{PREFIX}."):
            name, dim, field = full_name.removeprefix(f"{PREFIX}.").rsplit(".", 2)
            found[name][int(dim)][field] = tensor.bool() if field == "original" else tensor
    return {
        name: tuple(DimFactors(**dims[dim]) for dim in sorted(dims)) for name, dims in found.items()
    }
