"""A model of which every process holds its own rows of each parameter (FSDP2).

A block's weights are gathered when it computes and let go of afterwards; what lies outside the blocks is
gathered by the model's own methods.
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
from growlm.model.axes import axes_table
from growlm.model.config import ModelConfig
from growlm.model.initialization import initial_value
from growlm.model.transformer import TransformerLM

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


FORWARD_METHODS = ("loss", "token_losses", "last_hidden_state", "decode_step")
"""Of the model, beside `forward`: they gather its weights."""


def apply_fsdp(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a model's parameters among processes, in place; one without values (meta device) stays so.

    Args:
        model: With `blocks`, as `TransformerLM`.
        mesh: Of one dimension.
    """
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # FSDP2 would keep what lies outside the blocks until a backward pass, which validation has none of.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in FORWARD_METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


@contextmanager
def without_backward_prefetch(model: nn.Module) -> Iterator[None]:
    """While a block goes through its backward pass, the next one's weights are not gathered yet: less memory.

    Args:
        model: Sharded or not.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_modules_to_backward_prefetch([part])  # which has been gathered
    try:
        yield
    finally:
        for part in parts:
            part.set_modules_to_backward_prefetch([])  # FSDP2's own choice


def shard_optimizer_states(
    states: Mapping[str, dict[str, Tensor]], mesh: DeviceMesh
) -> dict[str, dict[str, Tensor]]:
    """An optimizer's states, by parameter name, of which each process keeps its own rows."""

    def divide(tensor: Tensor) -> Tensor:
        if is_sharded(tensor) or not tensor.ndim:
            return tensor
        rows = get_shard_rows(len(tensor), mesh.get_local_rank(), mesh.size())
        return from_local(tensor[rows].clone(), tensor.shape, mesh)

    return {name: {k: divide(v) for k, v in state.items()} for name, state in states.items()}


def create_sharded_model(config: ModelConfig, seed: int, mesh: DeviceMesh) -> TransformerLM:
    """A model with initial weights, those of `TransformerLM(config, seed)`, which no process ever holds whole."""
    with torch.device("meta"):
        model = TransformerLM(config)
    apply_fsdp(model, mesh)
    table = axes_table(model)
    parameters = {name for name, _ in model.named_parameters()}
    nothing = torch.empty(0, device=get_mesh_device(mesh))

    def making(name: str) -> ShardedTask[str]:
        row = table[name]
        return ShardedTask(
            name,
            nothing,
            lambda like: initial_value(name, row, config.n_layers, seed).to(like),
            row.shape,
        )

    values = dict(map_sharded((making(name) for name in table if name in parameters), mesh))
    values |= map_sharded((making(name) for name in table if name not in parameters), None)
    model.load_state_dict(values, assign=True)
    return model
