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

from growlm.distributed.dtensors import divided, is_sharded, own_part, rows_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

K = TypeVar("K")


@dataclass(frozen=True)
class Making(Generic[K]):
    """A tensor to be made.

    Args:
        key: What it is.
        source: What of; sharded or not. Let go of once the tensor is made.
        make: Makes it of the whole source. Called in one process.
        shape: Of what is made; in the source's precision and on its device.
    """

    key: K
    source: Tensor
    make: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


def each_made(makings: Iterable[Making[K]], mesh: DeviceMesh | None) -> Iterator[tuple[K, Tensor]]:
    """Make tensors, in order.

    Args:
        makings: The same in all processes; asked for as they are needed.
        mesh: What every tensor is to be divided among; None to make each whole, here.

    Yields:
        Each tensor, of which this process holds its rows.
    """
    if mesh is None:
        for making in makings:
            made = making.key, making.make(making.source)
            del making
            yield made
            del made
        return
    turn: list[Making[K]] = []
    for making in makings:
        turn.append(making)
        del making
        if len(turn) == mesh.size():
            yield from _one_turn(turn, mesh)
            turn = []
    yield from _one_turn(turn, mesh)


def whole_in_first(tensor: Tensor) -> Tensor | None:
    """A sharded tensor with all its rows, in the first process of its mesh; None in the others.

    All processes must ask for it. One that is not sharded is itself, in all.
    """
    if not is_sharded(tensor):
        return tensor
    return _gather([tensor], tensor.device_mesh)


def _one_turn(turn: list[Making[K]], mesh: DeviceMesh) -> Iterator[tuple[K, Tensor]]:
    """One making for each process, or fewer."""
    rank = mesh.get_local_rank()
    whole = _gather([making.source for making in turn], mesh)
    made: Tensor | None = None
    if rank < len(turn):
        assert whole is not None
        made = turn[rank].make(whole).contiguous()
        if (made.shape, made.dtype) != (turn[rank].shape, whole.dtype):
            raise AssertionError(f"{turn[rank].key}: made {made.dtype}, {tuple(made.shape)}")
    del whole
    keys = [making.key for making in turn]
    shapes = [making.shape for making in turn]
    like = own_part(turn[0].source) if turn else torch.empty(0)
    dtypes = [making.source.dtype for making in turn]
    turn.clear()
    parts = _scatter(made, shapes, dtypes, like.device, mesh)
    del made, like
    for key, part, shape in zip(keys, parts, shapes, strict=True):
        yield key, divided(part, shape, mesh)


def _gather(sources: list[Tensor], mesh: DeviceMesh) -> Tensor | None:
    """Each process gets one source whole, the first the first; None if there are fewer."""
    rank, messages = mesh.get_local_rank(), _Messages(mesh)
    whole: Tensor | None = None
    for owner, source in enumerate(sources):
        if not is_sharded(source):
            whole = source if owner == rank else whole
            continue
        part = own_part(source.detach())
        if owner != rank:
            messages.send(part, owner)
            continue
        whole = part.new_empty(source.shape)
        for other in range(mesh.size()):
            rows = whole[rows_of(len(whole), other, mesh.size())]
            if other == rank:
                rows.copy_(part)
            else:
                messages.receive(rows, other)
    messages.wait()
    return whole


def _scatter(
    made: Tensor | None,
    shapes: list[tuple[int, ...]],
    dtypes: list[torch.dtype],
    device: torch.device,
    mesh: DeviceMesh,
) -> list[Tensor]:
    """This process's rows of the tensor that each process has made, the first's first."""
    rank, messages = mesh.get_local_rank(), _Messages(mesh)
    parts = []
    for owner, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        if owner == rank:
            assert made is not None
            for other in range(mesh.size()):
                rows = made[rows_of(shape[0], other, mesh.size())]
                if other == rank:
                    parts.append(rows.clone())  # what is not ours is freed
                else:
                    messages.send(rows, other)
        else:
            mine = rows_of(shape[0], rank, mesh.size())
            part = torch.empty((mine.stop - mine.start, *shape[1:]), dtype=dtype, device=device)
            messages.receive(part, owner)
            parts.append(part)
    messages.wait()
    return parts


class _Messages:
    """Tensors from process to process, all under way at once."""

    def __init__(self, mesh: DeviceMesh) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, mesh.get_group()
        self._under_way: list[dist.P2POp] = []

    def send(self, tensor: Tensor, rank: int) -> None:
        """Give a tensor to a process. Nothing, if it has no rows."""
        self._add(self._dist.isend, tensor, rank)

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill a tensor with what a process sends."""
        self._add(self._dist.irecv, tensor, rank)

    def wait(self) -> None:
        """Until all has been sent and received."""
        if self._under_way:
            for message in self._dist.batch_isend_irecv(self._under_way):
                message.wait()

    def _add(self, act: Callable[..., Any], tensor: Tensor, rank: int) -> None:
        if tensor.numel():
            operation = self._dist.P2POp(act, tensor, group=self._group, group_peer=rank)
            self._under_way.append(operation)
