"""Making tensors out of tensors where every process holds its own rows of each.

What is made of a whole tensor is made whole by one process, and each gets its rows of it. Processes take turns, so
that they make as many tensors at once as they are, and none ever holds more whole ones than what one is made of.
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
    """A tensor to be made.

    Args:
        key: What it is.
        source: What of; sharded or not. Let go of once the tensor is made.
        make: Makes it of the whole source. Called in one process.
        shape: Of what is made; in the source's precision and on its device.
    """

    key: K
    source: Tensor
    compute: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


def map_sharded(
    tasks: Iterable[ShardedTask[K]], mesh: DeviceMesh | None
) -> Iterator[tuple[K, Tensor]]:
    """Make tensors, in order.

    Args:
        makings: The same in all processes; asked for as they are needed.
        mesh: What every tensor is to be divided among; None to make each whole, here.

    Yields:
        Each tensor, of which this process holds its rows.
    """
    if mesh is None:
        for making in tasks:
            made = making.key, making.compute(making.source)
            del making
            yield made
            del made
        return
    turn: list[ShardedTask[K]] = []
    for making in tasks:
        turn.append(making)
        del making
        if len(turn) == mesh.size():
            yield from _run_round(turn, mesh)
            turn = []
    yield from _run_round(turn, mesh)


def gather_to_rank0(tensor: Tensor) -> Tensor | None:
    """A sharded tensor with all its rows, in the first process of its mesh; None in the others.

    All processes must ask for it. One that is not sharded is itself, in all.
    """
    if not is_sharded(tensor):
        return tensor
    return _gather_sources([tensor], tensor.device_mesh)


def _run_round(tasks: list[ShardedTask[K]], mesh: DeviceMesh) -> Iterator[tuple[K, Tensor]]:
    """One making for each process, or fewer."""
    rank = mesh.get_local_rank()
    whole = _gather_sources([making.source for making in tasks], mesh)
    made: Tensor | None = None
    if rank < len(tasks):
        assert whole is not None
        made = tasks[rank].compute(whole).contiguous()
        if (made.shape, made.dtype) != (tasks[rank].shape, whole.dtype):
            raise AssertionError(f"{tasks[rank].key}: made {made.dtype}, {tuple(made.shape)}")
    del whole
    keys = [making.key for making in tasks]
    shapes = [making.shape for making in tasks]
    like = get_local_tensor(tasks[0].source) if tasks else torch.empty(0)
    dtypes = [making.source.dtype for making in tasks]
    tasks.clear()
    parts = _scatter_results(made, shapes, dtypes, like.device, mesh)
    del made, like
    for key, part, shape in zip(keys, parts, shapes, strict=True):
        yield key, from_local(part, shape, mesh)


def _gather_sources(sources: list[Tensor], mesh: DeviceMesh) -> Tensor | None:
    """Each process gets one source whole, the first the first; None if there are fewer."""
    rank, messages = mesh.get_local_rank(), _PointToPointBatch(mesh)
    whole: Tensor | None = None
    for owner, source in enumerate(sources):
        if not is_sharded(source):
            whole = source if owner == rank else whole
            continue
        part = get_local_tensor(source.detach())
        if owner != rank:
            messages.send(part, owner)
            continue
        whole = part.new_empty(source.shape)
        for other in range(mesh.size()):
            rows = whole[get_shard_rows(len(whole), other, mesh.size())]
            if other == rank:
                rows.copy_(part)
            else:
                messages.receive(rows, other)
    messages.wait()
    return whole


def _scatter_results(
    result: Tensor | None,
    shapes: list[tuple[int, ...]],
    dtypes: list[torch.dtype],
    device: torch.device,
    mesh: DeviceMesh,
) -> list[Tensor]:
    """This process's rows of the tensor that each process has made, the first's first."""
    rank, messages = mesh.get_local_rank(), _PointToPointBatch(mesh)
    parts = []
    for owner, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        if owner == rank:
            assert result is not None
            for other in range(mesh.size()):
                rows = result[get_shard_rows(shape[0], other, mesh.size())]
                if other == rank:
                    parts.append(rows.clone())  # what is not ours is freed
                else:
                    messages.send(rows, other)
        else:
            mine = get_shard_rows(shape[0], rank, mesh.size())
            part = torch.empty((mine.stop - mine.start, *shape[1:]), dtype=dtype, device=device)
            messages.receive(part, owner)
            parts.append(part)
    messages.wait()
    return parts


class _PointToPointBatch:
    """Tensors from process to process, all under way at once."""

    def __init__(self, mesh: DeviceMesh) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, mesh.get_group()
        self._operations: list[dist.P2POp] = []

    def send(self, tensor: Tensor, rank: int) -> None:
        """Give a tensor to a process. Nothing, if it has no rows."""
        self._add(self._dist.isend, tensor, rank)

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill a tensor with what a process sends."""
        self._add(self._dist.irecv, tensor, rank)

    def wait(self) -> None:
        """Until all has been sent and received."""
        if self._operations:
            for message in self._dist.batch_isend_irecv(self._operations):
                message.wait()

    def _add(self, act: Callable[..., Any], tensor: Tensor, rank: int) -> None:
        if tensor.numel():
            operation = self._dist.P2POp(act, tensor, group=self._group, group_peer=rank)
            self._operations.append(operation)
