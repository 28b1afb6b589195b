"""Compute new tensors from full source tensors when every process holds only its shard of each.

One process gathers a full source, computes the result and scatters its rows to all processes. In each round every
process handles one task, so all of them work at once and each holds only one full source and its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from growlm.distributed.dtensors import from_local, get_local_tensor, get_shard_rows, is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

K = TypeVar("K")


@dataclass(frozen=True)
class ShardedTask(Generic[K]):
    """A task for `map_sharded`: a function of one gathered source tensor, whose result is sharded again.

    Args:
        key: Identifier of the result.
        source: Source tensor, sharded or not; released once the result is computed.
        compute: Function from the full source to the result; called in one process.
        shape: Shape of the result, which has the dtype and device of the source.
    """

    key: K
    source: Tensor
    compute: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


def map_sharded(
    tasks: Iterable[ShardedTask[K]], mesh: DeviceMesh | None
) -> Iterator[tuple[K, Tensor]]:
    """Run tasks in order and yield each key with its result, of which this process holds its shard.

    Args:
        tasks: Tasks, the same in all processes; consumed as they are needed.
        mesh: Device mesh to shard every result over; None to compute full results in this process.
    """
    if mesh is None:
        for task in tasks:
            result = task.key, task.compute(task.source)
            del task
            yield result
            del result
        return
    pending: list[ShardedTask[K]] = []
    for task in tasks:
        pending.append(task)
        del task
        if len(pending) == mesh.size():
            yield from _run_round(pending, mesh)
            pending = []
    yield from _run_round(pending, mesh)


def gather_to_rank0(tensor: Tensor) -> Tensor | None:
    """Return the full tensor on rank 0 of its mesh, None on other ranks; a collective call.

    A tensor that is not sharded is returned unchanged on all ranks.
    """
    if not is_sharded(tensor):
        return tensor
    return _gather_sources([tensor], tensor.device_mesh)


def _run_round(tasks: list[ShardedTask[K]], mesh: DeviceMesh) -> Iterator[tuple[K, Tensor]]:
    """Run at most one task per process and yield the results."""
    rank = mesh.get_local_rank()
    source = _gather_sources([task.source for task in tasks], mesh)
    result: Tensor | None = None
    if rank < len(tasks):
        assert source is not None
        result = tasks[rank].compute(source).contiguous()
        if (result.shape, result.dtype) != (tasks[rank].shape, source.dtype):
            raise AssertionError(
                f"{tasks[rank].key}: computed {result.dtype}, {tuple(result.shape)}"
            )
    del source
    keys = [task.key for task in tasks]
    shapes = [task.shape for task in tasks]
    like = get_local_tensor(tasks[0].source) if tasks else torch.empty(0)
    dtypes = [task.source.dtype for task in tasks]
    tasks.clear()
    shards = _scatter_results(result, shapes, dtypes, like.device, mesh)
    del result, like
    for key, shard, shape in zip(keys, shards, shapes, strict=True):
        yield key, from_local(shard, shape, mesh)


def _gather_sources(sources: list[Tensor], mesh: DeviceMesh) -> Tensor | None:
    """Return the full source with the index of this process's rank; None if there are fewer sources."""
    rank, messages = mesh.get_local_rank(), _PointToPointBatch(mesh)
    full: Tensor | None = None
    for owner, source in enumerate(sources):
        if not is_sharded(source):
            full = source if owner == rank else full
            continue
        shard = get_local_tensor(source.detach())
        if owner != rank:
            messages.send(shard, owner)
            continue
        full = shard.new_empty(source.shape)
        for other in range(mesh.size()):
            rows = full[get_shard_rows(len(full), other, mesh.size())]
            if other == rank:
                rows.copy_(shard)
            else:
                messages.receive(rows, other)
    messages.wait()
    return full


def _scatter_results(
    result: Tensor | None,
    shapes: list[tuple[int, ...]],
    dtypes: list[torch.dtype],
    device: torch.device,
    mesh: DeviceMesh,
) -> list[Tensor]:
    """Return this process's shard of each result, ordered by the rank that computed it."""
    rank, messages = mesh.get_local_rank(), _PointToPointBatch(mesh)
    shards = []
    for owner, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        if owner == rank:
            assert result is not None
            for other in range(mesh.size()):
                rows = result[get_shard_rows(shape[0], other, mesh.size())]
                if other == rank:
                    shards.append(rows.clone())  # so that the other rows are freed
                else:
                    messages.send(rows, other)
        else:
            own = get_shard_rows(shape[0], rank, mesh.size())
            shard = torch.empty((own.stop - own.start, *shape[1:]), dtype=dtype, device=device)
            messages.receive(shard, owner)
            shards.append(shard)
    messages.wait()
    return shards


class _PointToPointBatch:
    """A batch of point-to-point messages that are sent and received at the same time."""

    def __init__(self, mesh: DeviceMesh) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, mesh.get_group()
        self._operations: list[dist.P2POp] = []

    def send(self, tensor: Tensor, rank: int) -> None:
        """Queue sending a tensor to a rank; an empty tensor is skipped."""
        self._add(self._dist.isend, tensor, rank)

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Queue receiving a tensor from a rank, in place; an empty tensor is skipped."""
        self._add(self._dist.irecv, tensor, rank)

    def wait(self) -> None:
        """Start all queued messages and wait until they are done."""
        if self._operations:
            for message in self._dist.batch_isend_irecv(self._operations):
                message.wait()

    def _add(self, act: Callable[..., Any], tensor: Tensor, rank: int) -> None:
        if tensor.numel():
            operation = self._dist.P2POp(act, tensor, group=self._group, group_peer=rank)
            self._operations.append(operation)
