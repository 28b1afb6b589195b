"""Sharding of a model with FSDP2: each process holds its own rows of each parameter.

A block's weights are gathered while it computes and freed afterwards; weights outside the blocks are gathered
by the model's own methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from growlm.distributed.dtensors import from_local, get_mesh_device, get_shard_rows, is_sharded
from growlm.distributed.sharded_tasks import ShardedTask, map_sharded
from growlm.model.axes import axes_table, get_blocks
from growlm.model.config import ModelConfig
from growlm.model.initialization import initial_value
from growlm.model.transformer import TransformerLM

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


FORWARD_METHODS = ("loss", "token_losses", "last_hidden_state", "decode_step")
"""Methods of the model, besides `forward`, that gather its weights."""


def apply_fsdp(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over the processes, in place. Works on the meta device, too.

    Args:
        model: Model whose blocks are marked with `label_blocks`, such as `TransformerLM`.
        mesh: One-dimensional device mesh.
    """
    for block in get_blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # By default FSDP2 keeps the weights outside the blocks until a backward pass, and validation has none.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in FORWARD_METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


@contextmanager
def without_backward_prefetch(model: nn.Module) -> Iterator[None]:
    """Gather the next block's weights only when its own backward pass begins, which saves memory.

    Args:
        model: Sharded or unsharded model.
    """
    fsdp_modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for fsdp_module in fsdp_modules:
        # A module is already gathered in its own backward pass, so this prefetches nothing.
        fsdp_module.set_modules_to_backward_prefetch([fsdp_module])
    try:
        yield
    finally:
        for fsdp_module in fsdp_modules:
            fsdp_module.set_modules_to_backward_prefetch([])  # FSDP2's default


def shard_optimizer_states(
    states: Mapping[str, dict[str, Tensor]], mesh: DeviceMesh
) -> dict[str, dict[str, Tensor]]:
    """Shard an optimizer's states, given by parameter name, so that each process keeps its own rows."""

    def shard(tensor: Tensor) -> Tensor:
        if is_sharded(tensor) or not tensor.ndim:
            return tensor
        rows = get_shard_rows(len(tensor), mesh.get_local_rank(), mesh.size())
        return from_local(tensor[rows].clone(), tensor.shape, mesh)

    return {name: {k: shard(v) for k, v in state.items()} for name, state in states.items()}


def create_sharded_model(config: ModelConfig, seed: int, mesh: DeviceMesh) -> TransformerLM:
    """Create a sharded model without any process ever holding all of it.

    Its initial weights equal those of `TransformerLM(config, seed)`.
    """
    with torch.device("meta"):
        model = TransformerLM(config)
    apply_fsdp(model, mesh)
    table = axes_table(model)
    parameters = {name for name, _ in model.named_parameters()}
    empty = torch.empty(0, device=get_mesh_device(mesh))

    def initial_value_task(name: str) -> ShardedTask[str]:
        row = table[name]
        return ShardedTask(
            name,
            empty,
            lambda like: initial_value(name, row, config.n_layers, seed).to(like),
            row.shape,
        )

    values = dict(
        map_sharded((initial_value_task(name) for name in table if name in parameters), mesh)
    )
    values |= map_sharded(
        (initial_value_task(name) for name in table if name not in parameters), None
    )
    model.load_state_dict(values, assign=True)
    return model
