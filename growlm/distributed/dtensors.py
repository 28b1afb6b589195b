"""Handle sharded tensors (FSDP2 `DTensor`s) and plain tensors through the same functions.

Only the first dimension is sharded, over all processes, split as `torch.chunk` does: FSDP2's own rule.
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
    """Return whether the tensor is a `DTensor`, of which this process holds one shard."""
    # Importing the module is slow; while nobody has, no tensor can be a DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def get_full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor. For a sharded tensor this is a collective call that returns a new tensor.

    No gradient flows through a sharded tensor.
    """
    if not is_sharded(tensor):
        return tensor
    # Leave inference mode: torch 2.11 lacks an operation there that this needs.
    with torch.inference_mode(False), torch.no_grad():
        return tensor.full_tensor()


def get_local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, sharing its memory; no gradient flows if it is sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def get_local_rows(tensor: Tensor) -> slice:
    """Return the range of rows of the full tensor that this process holds."""
    if not is_sharded(tensor):
        return slice(0, tensor.shape[0] if tensor.ndim else 1)
    mesh = tensor.device_mesh
    return get_shard_rows(tensor.shape[0], mesh.get_local_rank(), mesh.size())


def get_shard_rows(num_rows: int, rank: int, num_shards: int) -> slice:
    """Return the range of rows, possibly empty, that a rank holds of a tensor with `num_rows` rows."""
    chunk = -(-num_rows // num_shards)
    return slice(min(num_rows, rank * chunk), min(num_rows, (rank + 1) * chunk))


def get_device_mesh(model: nn.Module) -> DeviceMesh | None:
    """Return the device mesh over which a model's parameters are sharded; None if they are not."""
    parameter = next(model.parameters(), None)
    return parameter.device_mesh if is_sharded(parameter) else None


def get_mesh_device(mesh: DeviceMesh) -> torch.device:
    """Return the device of this process's shards."""
    if mesh.device_type != "cuda":
        return torch.device(mesh.device_type)
    return torch.device("cuda", torch.cuda.current_device())


def from_local(local_tensor: Tensor, shape: Sequence[int], mesh: DeviceMesh) -> Tensor:
    """Build a sharded tensor from this process's shard.

    Args:
        local_tensor: Rows of this process as in `get_shard_rows`, with all other dimensions.
        shape: Shape of the full tensor.
        mesh: Device mesh over which the tensor is sharded.
    """
    from torch.distributed.tensor import DTensor, Shard

    strides = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        local_tensor, mesh, (Shard(0),), run_check=False, shape=torch.Size(shape), stride=strides
    )


def all_reduce_sum(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the sum over processes of values computed from shards; a new tensor if `like` is sharded.

    Args:
        tensor: Plain tensor of any shape, the same shape in all processes.
        like: Tensor from which the values were computed; if it is not sharded, `tensor` is returned.
    """
    if not is_sharded(like):
        return tensor
    import torch.distributed as dist

    summed = tensor.clone()
    dist.all_reduce(summed, group=like.device_mesh.get_group())
    return summed
