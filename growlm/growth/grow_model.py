"""Grow a model in memory by a list of operators, and its optimizer with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growlm.distributed.dtensors import get_device_mesh, get_local_tensor
from growlm.distributed.sharded_tasks import ShardedTask, map_sharded
from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import GrowthMap, GrowthSpec, derive_growth_map
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_adapters import find_model_adapter
from growlm.growth.model_protocol import (
    AxesTable,
    adopt_unsaved_tensors,
    axes_table_from_config,
    axes_table_with_config,
    build_with_config,
    first_names,
    growth_axes_table,
    growth_config_of,
    load_weights,
)
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.widen import Widen
from growlm.growth.optimizer_growth import OptimizerT, check_optimizers, grow_optimizers
from growlm.growth.transforms.noise import ZeroSumNoise
from growlm.growth.transforms.tensor_transforms import Copy, Split, TensorTransform
from growlm.model.axes import find_block_stack, find_position
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError

Model = TypeVar("Model", bound=nn.Module)

MAX_SHOWN_PARAMETERS = 3
"""Number of parameters that a message names."""
LARGE_TENSOR_ENTRIES = 2**25
"""The number of entries from which tensors are made one after another on all cores. Smaller tensors are made
in parallel, one core each."""


class Operator(Protocol):
    """The interface of every growth operator."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return the growth of a model of this config; raise UserError if the operator cannot be applied."""


def build_growth_map(
    model: nn.Module | ModelConfig,
    operators: Sequence[Operator],
    model_class: type[nn.Module] = TransformerLM,
) -> GrowthMap:
    """Return the growth map of a sequence of operators; no tensor is touched.

    Args:
        model: Model before the growth, or its config.
        operators: Operators, applied in order.
        model_class: Class that builds the model, if `model` is a config.

    Raises:
        UserError: If an operator cannot be applied.
        ValueError: If a parameter or buffer has no axis label, or one that does not fit it or the config.
    """
    check_operators(operators)
    if isinstance(model, ModelConfig):
        name, config = model_class.__name__, model
        make_table = partial(axes_table_from_config, model_class=model_class)
        table = make_table(config)
    else:
        name, config = type(model).__name__, growth_config_of(model)
        make_table = partial(axes_table_with_config, model)
        table = growth_axes_table(model, config)
        if mismatch := table.keys() ^ make_table(config).keys():
            raise ValueError(
                f"{', '.join(sorted(mismatch))}: not what {name} builds from its config"
            )
    growth_map = GrowthMap.identity(config, table)
    for position, operator in enumerate(operators):
        spec = operator.change(growth_map.new_config)
        new_table = make_table(spec.config)
        step = derive_growth_map(growth_map.new_config, table, new_table, spec, position)
        grows = spec.axes or spec.blocks or spec.upcycle or spec.noise
        kept = (each.source == name and not each.transforms for name, each in step.tensors.items())
        if grows and all(kept):
            raise UserError(
                "operators", type(operator).__name__, _explain_no_growth(name, spec, table)
            )
        growth_map = growth_map.then(step)
        table = new_table
    return growth_map


def check_operators(operators: Sequence[Operator]) -> None:
    """Check that operators are a list of objects with a method `change`.

    Raises:
        UserError: If they are something else, or one of them is its class or its name.
    """
    if not isinstance(operators, list | tuple):
        reason = f"must be a list of operators, such as [{type(operators).__name__}(...)]"
        raise UserError("operators", repr(operators), reason)
    for index, operator in enumerate(operators):
        key = f"operators[{index}]"
        if isinstance(operator, type):
            reason = f"is a class; write {operator.__name__}(...)"
            raise UserError(key, operator.__name__, reason)
        if not callable(getattr(operator, "change", None)):
            reason = "is no operator; use one such as Widen(scale_factor=2)"
            raise UserError(key, repr(operator), reason)


def _explain_no_growth(model_name: str, spec: GrowthSpec, table: AxesTable) -> str:
    """Return why an operator changes nothing: which labels it looks for, and which the parameters have."""
    wanted = [f"the axes {', '.join(spec.axes)}"] if spec.axes else []
    wanted += ["blocks (label_blocks)"] if spec.blocks else []
    wanted += ["stacks of experts (stacked_from)"] if spec.upcycle else []
    found = dict.fromkeys(dim.axis for row in table.values() for dim in row.label.dims)
    shown = ", ".join(
        [*list(table)[:MAX_SHOWN_PARAMETERS], *["..."][: len(table) > MAX_SHOWN_PARAMETERS]]
    )
    return (
        f"finds nothing to grow in {model_name}: it changes {' and '.join(wanted)}, and no parameter ({shown}) is "
        f"labeled so; their axes are {', '.join(found)}. Label them, or leave the operator out"
    )


def apply_growth(model: Model, growth_map: GrowthMap, rng: GrowthRng) -> Model:
    """Return the grown model, with the old one's precision, device and mode; the old one is left as it is.

    If the old model is sharded, the grown one is sharded in the same way.
    """
    mesh = get_device_mesh(model)
    grown = build_with_config(model, growth_map.new_config, with_values=True)
    ties = resolve_ties(grown, growth_map)
    sharded_names: list[str] = []
    if mesh is not None:
        from growlm.model.fsdp import apply_fsdp  # loads torch.distributed

        apply_fsdp(grown, mesh)
        sharded_names = changed_tensors_by_size(growth_map, dict(grown.named_parameters()))
    old = model.state_dict()
    any_tensor = get_local_tensor(next(iter(old.values())))

    def make_task(name: str) -> ShardedTask[str]:
        tensor_map = growth_map.tensors[name]
        source = any_tensor if tensor_map.source is None else old[tensor_map.source]
        return ShardedTask(name, source, lambda x: tensor_map.grow_weight(x, rng), tensor_map.shape)

    def make_tensor(name: str) -> tuple[str, Tensor]:
        task = make_task(name)
        return name, task.compute(task.source)

    with torch.no_grad(), rng:
        new = dict(map_sharded(map(make_task, sharded_names), mesh))
        rest = [n for n in growth_map.tensors if n not in new and ties.get(n, n) == n]
        sizes = {name: math.prod(growth_map.tensors[name].shape) for name in rest}
        # All cores can work on one large tensor, and two of them at once would not fit into any cache.
        new |= map(make_tensor, [name for name in rest if sizes[name] >= LARGE_TENSOR_ENTRIES])
        small = [name for name in rest if sizes[name] < LARGE_TENSOR_ENTRIES]
        new |= rng.threads.map(make_tensor, sorted(small, key=lambda name: -sizes[name]))
    if mesh is not None:
        rng.noise_log.gather(mesh)
    load_weights(grown, new)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in grown.named_parameters():
        parameter.requires_grad_(trainable.get(growth_map.tensors[name].source or "", True))
    adopt_unsaved_tensors(grown, model, partial(_source_name, growth_map, find_block_stack(grown)))
    return grown.train(model.training)


def _source_name(growth_map: GrowthMap, stack: str | None, name: str) -> str:
    """Return the name, in the old model, of something in the grown one."""
    position = find_position(name, stack)
    if position is None:
        return name
    return position.name_at(growth_map.blocks[position.index].source, position.name)


def resolve_ties(grown: nn.Module, growth_map: GrowthMap) -> dict[str, str]:
    """Return, for each tensor of the grown model, the name that it is made under: the first of its names.

    Raises:
        ValueError: If a growth would make different tensors of one that the model has under several names.
    """
    ties = first_names(grown)
    for name, first in ties.items():
        kinds = [[type(t) for t in growth_map.tensors[n].transforms] for n in (first, name)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{first} and {name} are one parameter, and the growth would part them"
            )
    return ties


def changed_tensors_by_size(growth_map: GrowthMap, names: Collection[str]) -> list[str]:
    """Return the names of new tensors that are not just their source, the largest first.

    The order balances the work of processes that make tensors at the same time.
    """
    changed = [name for name in names if not growth_map.tensors[name].keeps_weight]
    return sorted(changed, key=lambda name: -math.prod(growth_map.tensors[name].shape))


@overload
def grow(
    model: Model, operators: Sequence[Operator], seed: int = 0, boundary_index: int = 0
) -> Model: ...


@overload
def grow(
    model: Model,
    operators: Sequence[Operator],
    seed: int = 0,
    boundary_index: int = 0,
    *,
    optimizer: OptimizerT,
    optimizer_state: str | None = None,
) -> tuple[Model, OptimizerT]: ...


@overload
def grow(
    model: Model,
    operators: Sequence[Operator],
    seed: int = 0,
    boundary_index: int = 0,
    *,
    optimizer: Sequence[Optimizer],
    optimizer_state: str | None = None,
) -> tuple[Model, list[Optimizer]]: ...


def grow(
    model: Model,
    operators: Sequence[Operator],
    seed: int = 0,
    boundary_index: int = 0,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    optimizer_state: str | None = None,
) -> Model | tuple[Model, Optimizer] | tuple[Model, list[Optimizer]]:
    """Grow a model, and its optimizer if there is one.

    Args:
        model: Module with labeled axes that is built from its `config`, a `ModelConfig`, as `TransformerLM` is;
            one of your own, see docs/own_models.md; or a model of transformers, see docs/huggingface.md.
        operators: `Upcycle`, `Widen`, `Deepen`, `MultiplyExperts`, applied in order.
        seed: Seed of noise, routers and filler columns.
        boundary_index: Index of this growth within a run; part of the seed.
        optimizer: Optimizer of the model, or a list of several, of torch or of your own. They may leave out
            parameters, but must step no others.
        optimizer_state: Mode of the optimizer's growth (`optimizer_state.py`): `carry` (or None) grows each moment
            as its weight is, `reset` starts anew, and `exact` also scales the steps so that the grown model trains
            as the old one would have (if gradients are not clipped, and growth added no noise).

    Returns:
        A new model of the same class (a model of transformers may change it); with `optimizer`, that and a new
        optimizer (or a list) of the same class, in the same groups with the same settings. Build a schedule of the
        learning rate anew. `model`, `optimizer` and the global random state are left as they are.

    Raises:
        UserError: If an operator cannot be applied, or the optimizer cannot grow.
        ValueError: If the model has a parameter or buffer without an axis label, or one that its class does
            not build from its config.
    """
    if optimizer is not None and not isinstance(optimizer, Iterable):
        optimizers = [optimizer]
    else:
        optimizers = list(optimizer or ())
    if optimizer is None and optimizer_state is not None:
        raise UserError("optimizer_state", optimizer_state, "needs an optimizer")
    mode = optimizer_state or "carry"
    rng, adapter = GrowthRng(seed, boundary_index), find_model_adapter(model)
    grow_all: Callable[..., Any] = _grow_labeled if adapter is None else adapter.grow_model
    grown, new_optimizers = grow_all(model, operators, rng, optimizers, mode)
    if optimizer is None:
        return grown
    if not isinstance(optimizer, Iterable):
        return grown, new_optimizers[0]
    return grown, new_optimizers


def _grow_labeled(
    model: Model,
    operators: Sequence[Operator],
    rng: GrowthRng,
    optimizers: Sequence[Optimizer],
    mode: str,
) -> tuple[Model, list[Optimizer]]:
    """Grow a model that has labels itself, and its optimizers."""
    growth_config_of(model)  # what is wrapped is refused first
    check_optimizers(optimizers, model, mode)
    growth_map = build_growth_map(model, operators)
    grown = apply_growth(model, growth_map, rng)
    if not optimizers:
        return grown, []
    return grown, grow_optimizers(optimizers, model, grown, growth_map, mode)


def scale_bilaterally(
    small_model: Model,
    scale_factor: float = 2,
    extra_layers: int = 4,
    noise_std: float = 1e-5,
    seed: int = 0,
) -> Model:
    """Widen by copies and deepen by identity blocks, as `recipe=copies` does, without changing the function.

    Args:
        small_model: Model to grow; it is left as it is.
        scale_factor: Growth of width, heads and hidden units.
        extra_layers: Number of new blocks, appended.
        noise_std: Standard deviation of the zero-sum noise on the copies.
        seed: Seed of the noise.

    Raises:
        UserError: If a size is not whole after scaling, or nothing would grow.
    """
    operators: list[Operator] = [Widen(scale_factor=scale_factor, noise_std=noise_std)]
    if extra_layers:
        operators.append(Deepen(extra_layers=extra_layers, init="identity"))
    return grow(small_model, operators, seed)


@torch.no_grad()
def hyperclone_weight(
    weight: Tensor,
    scale_factor: float = 2,
    noise_std: float = 0.0,
    dim_mode: str = "both",
    seed: int = 0,
) -> Tensor:
    """Widen a single matrix by copying its inputs, its outputs or both round-robin.

    Args:
        weight: Matrix, (out, in).
        scale_factor: Growth of each widened side; new sizes must be whole.
        noise_std: Standard deviation of the zero-sum noise over the copies of each input, capped at the
            matrix's own.
        dim_mode: `both`, `in` (columns are divided) or `out` (rows are copied).
        seed: Seed of the noise.

    Returns:
        (out', in') with `grown @ copied_input == copies of (weight @ input)`.

    Raises:
        ValueError: If the mode is unknown or a size is not whole.
    """
    if dim_mode not in ("both", "in", "out"):
        raise ValueError(f"dim_mode={dim_mode}: must be both, in or out")
    transforms: list[TensorTransform] = []
    for dim, mode in ((0, "out"), (1, "in")):
        if dim_mode not in (mode, "both"):
            continue
        size = weight.shape[dim]
        new_size = round(size * scale_factor)
        if scale_factor < 1 or abs(new_size - size * scale_factor) > 1e-6:
            raise ValueError(
                f"scale_factor={scale_factor}: must scale {size} channels to a whole number of at least {size}"
            )
        channels = ChannelMap.round_robin(size, new_size)
        transforms.append(Copy(dim, channels) if dim == 0 else Split(dim, channels))
        if dim == 1 and noise_std > 0:
            transforms.append(ZeroSumNoise(dim, channels, noise_std, None, (0, "weight")))
    with GrowthRng(seed) as rng:
        for transform in transforms:
            weight = transform.transform_weight(weight, rng)
    return weight
