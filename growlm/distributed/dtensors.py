"""Tensors of which every process of a run holds its own rows (FSDP2), and plain ones, alike.

Only the first dimension is ever divided, over all processes, as `torch.chunk` divides it: FSDP2's own rule.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    """Whether this process holds a part of the tensor only."""
    module = sys.modules.get(
        "torch.distributed.tensor"
    )  # without it there is none; it loads slowly
    return module is not None and isinstance(tensor, module.DTensor)


def get_full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with all its rows; of a sharded one a new tensor, and all processes must ask for it.

    No gradient passes, if it is sharded.
    """
    if not is_sharded(tensor):
        return tensor
    # Out of inference mode: there torch 2.11 lacks an operation that this needs.
    with torch.inference_mode(False), torch.no_grad():
        return tensor.full_tensor()


def get_local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; shares its memory. No gradient passes, if it is sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def get_local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor this process holds."""
    if not is_sharded(tensor):
        return slice(0, tensor.shape[0] if tensor.ndim else 1)
    mesh = tensor.device_mesh
    return get_shard_rows(tensor.shape[0], mesh.get_local_rank(), mesh.size())


def get_shard_rows(num_rows: int, rank: int, num_shards: int) -> slice:
    """Which rows a process holds of a tensor of so many rows; maybe none."""
    chunk = -(-num_rows // num_shards)
    return slice(min(num_rows, rank * chunk), min(num_rows, (rank + 1) * chunk))


def from_local_like(local_tensor: Tensor, like: Tensor) -> Tensor:
    """A sharded tensor out of this process's part of it.

    Args:
        part: The rows `own_rows(like)`, and all of the other dimensions.
        like: A sharded tensor of the same shape as the result.
    """
    if not is_sharded(like):
        return local_tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local_tensor,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def get_device_mesh(model: nn.Module) -> DeviceMesh | None:
    """The processes that a model's parameters are divided among; None if each has all of them."""
    some = next(model.parameters(), None)
    return some.device_mesh if is_sharded(some) else None


def get_mesh_device(mesh: DeviceMesh) -> torch.device:
    """Where this process's parts are."""
    if mesh.device_type != "cuda":
        return torch.device(mesh.device_type)
    return torch.device("cuda", torch.cuda.current_device())


def from_local(local_tensor: Tensor, shape: Sequence[int], mesh: DeviceMesh) -> Tensor:
    """A sharded tensor out of this process's part of it.

    Args:
        part: Its own rows, as `rows_of` says, and all of the other dimensions.
        shape: Of the whole.
        mesh: The processes.
    """
    from torch.distributed.tensor import DTensor, Shard

    strides = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        local_tensor, mesh, (Shard(0),), run_check=False, shape=torch.Size(shape), stride=strides
    )


def all_reduce_sum(tensor: Tensor, like: Tensor) -> Tensor:
    """The sum over all processes of what each has made of its part of a tensor; a new tensor if that is sharded.

    Args:
        tensor: Plain; of any shape, the same in all processes.
        like: What it was made of.
    """
    if not is_sharded(like):
        return tensor
    import torch.distributed as dist

    summed = tensor.clone()
    dist.all_reduce(summed, group=like.device_mesh.get_group())
    return summed
