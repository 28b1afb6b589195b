"""Growing a model: operators to a map, the map to a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import get_device_mesh, get_local_tensor
from growlm.distributed.sharded_tasks import ShardedTask, map_sharded
from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import (
    GrowthMap,
    GrowthSpec,
    axes_table_from_config,
    derive_growth_map,
)
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.widen import Widen
from growlm.growth.transforms.noise import ZeroSumNoise
from growlm.growth.transforms.tensor_transforms import Copy, Split, TensorTransform
from growlm.model.axes import axes_table
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM

Model = TypeVar("Model", bound=nn.Module)

LARGE_TENSOR_ENTRIES = 2**25
"""Entries of tensors that are made one after another, with all cores; smaller ones at once, each with one."""


class Operator(Protocol):
    """What every growth operator offers."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """What happens to a model of this config; raises UserError if it cannot."""


def build_growth_map(
    config: ModelConfig,
    operators: Sequence[Operator],
    model_class: type[nn.Module] = TransformerLM,
) -> GrowthMap:
    """The map of a sequence of operators; no tensor is touched.

    Args:
        config: The model before.
        operators: Applied in order.
        model_class: Builds the model from a config, as `TransformerLM` does.

    Raises:
        UserError: If an operator cannot be applied.
        ValueError: If the model has a parameter or buffer without an axis label.
    """
    table = axes_table_from_config(config, model_class)
    growth_map = GrowthMap.identity(config, table)
    for position, operator in enumerate(operators):
        change = operator.change(growth_map.new_config)
        new_table = axes_table_from_config(change.config, model_class)
        growth_map = growth_map.then(
            derive_growth_map(growth_map.new_config, table, new_table, change, position)
        )
        table = new_table
    return growth_map


def apply_growth(model: Model, growth_map: GrowthMap, rng: GrowthRng) -> Model:
    """The grown model, in the old one's precision, device and mode; the old one is left as it is.

    The grown model of a sharded one is sharded likewise.
    """
    mesh = get_device_mesh(model)
    with torch.device("meta"):
        grown = type(model)(growth_map.new_config)
    dealt: list[str] = []
    if mesh is not None:
        from growlm.model.fsdp import apply_fsdp  # loads torch.distributed

        apply_fsdp(grown, mesh)
        dealt = changed_tensors_by_size(growth_map, dict(grown.named_parameters()))
    old = model.state_dict()
    some = get_local_tensor(next(iter(old.values())))

    def making(name: str) -> ShardedTask[str]:
        tensor_map = growth_map.tensors[name]
        source = some if tensor_map.source is None else old[tensor_map.source]
        return ShardedTask(name, source, lambda x: tensor_map.grow_weight(x, rng), tensor_map.shape)

    def made(name: str) -> tuple[str, Tensor]:
        one = making(name)
        return name, one.compute(one.source)

    with torch.no_grad(), rng:
        new = dict(map_sharded(map(making, dealt), mesh))
        rest = [name for name in growth_map.tensors if name not in new]
        sizes = {name: math.prod(growth_map.tensors[name].shape) for name in rest}
        # Many cores can share a large tensor, and two of them at once would not fit into any cache.
        new |= map(made, [name for name in rest if sizes[name] >= LARGE_TENSOR_ENTRIES])
        small = [name for name in rest if sizes[name] < LARGE_TENSOR_ENTRIES]
        new |= rng.parallel_map(made, sorted(small, key=lambda name: -sizes[name]))
    if mesh is not None:
        rng.gather_noise_levels(mesh)
    grown.load_state_dict(new, assign=True)
    return grown.train(model.training)


def changed_tensors_by_size(growth_map: GrowthMap, names: Collection[str]) -> list[str]:
    """Those new tensors that are not just their source, the largest first.

    Processes that make tensors at the same time should have about as much to do.
    """
    changed = [name for name in names if not growth_map.tensors[name].keeps_weight]
    return sorted(changed, key=lambda name: -math.prod(growth_map.tensors[name].shape))


def grow(
    model: Model, operators: Sequence[Operator], seed: int = 0, boundary_index: int = 0
) -> Model:
    """Grow a model.

    Args:
        model: Any module with labelled axes that is built from its `config` (`TransformerLM` or a subclass).
        operators: `Upcycle`, `Widen`, `Deepen`, `MultiplyExperts`, applied in order.
        seed: Of noise, routers and filler columns.
        boundary_index: Which growth of a run this is; part of the seed.

    Returns:
        A new model. `model` is left as it is; the global random state too.

    Raises:
        UserError: If an operator cannot be applied.
        ValueError: If the model has a parameter or buffer without an axis label, or one that its class does not
            build from its config.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    growth_map = build_growth_map(config, operators, type(model))
    if strays := axes_table(model).keys() ^ axes_table_from_config(config, type(model)).keys():
        raise ValueError(
            f"{', '.join(sorted(strays))}: not what {type(model).__name__} builds from its config"
        )
    return apply_growth(model, growth_map, GrowthRng(seed, boundary_index))


def scale_bilaterally(
    small_model: Model,
    scale_factor: float = 2,
    extra_layers: int = 4,
    noise_std: float = 1e-5,
    seed: int = 0,
) -> Model:
    """Widen by `scale_factor` and deepen by `extra_layers` identity blocks, lossless.

    Raises:
        UserError: If heads do not come out whole, or nothing would grow.
    """
    operators: list[Operator] = [Widen(scale_factor=scale_factor, noise_std=noise_std)]
    if extra_layers:
        operators.append(Deepen(extra_layers=extra_layers))
    return grow(small_model, operators, seed)


@torch.no_grad()
def hyperclone_weight(
    weight: Tensor,
    scale_factor: float = 2,
    noise_std: float = 0.0,
    dim_mode: str = "both",
    seed: int = 0,
) -> Tensor:
    """Widen a single matrix whose inputs, outputs or both are copied round-robin.

    Args:
        weight: (out, in).
        scale_factor: Of each widened side; sizes must come out whole.
        noise_std: Of cancelling noise over the copies of each input, capped at the matrix's own.
        dim_mode: `both`, `in` (columns are divided) or `out` (rows are copied).
        seed: Of the noise.

    Returns:
        (out', in') with `grown @ copied_input == copies of (weight @ input)`.

    Raises:
        ValueError: If the mode is unknown or a size is not whole.
    """
    if dim_mode not in ("both", "in", "out"):
        raise ValueError(f"dim_mode={dim_mode}: must be both, in or out")
    pieces: list[TensorTransform] = []
    for dim, mode in ((0, "out"), (1, "in")):
        if dim_mode not in (mode, "both"):
            continue
        size = weight.shape[dim]
        new_size = round(size * scale_factor)
        if scale_factor < 1 or abs(new_size - size * scale_factor) > 1e-6:
            raise ValueError(f"scale_factor={scale_factor}: {size} channels do not come out whole")
        channels = ChannelMap.round_robin(size, new_size)
        pieces.append(Copy(dim, channels) if dim == 0 else Split(dim, channels))
        if dim == 1 and noise_std > 0:
            pieces.append(ZeroSumNoise(dim, channels, noise_std, None, (0, "weight")))
    with GrowthRng(seed) as draws:
        for piece in pieces:
            weight = piece.transform_weight(weight, draws)
    return weight
