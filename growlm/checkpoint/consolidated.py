"""Write sharded tensors as consolidated files: gather them one by one, and write on rank 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from growlm.checkpoint.safetensors_io import TensorInfo, write_tensors
from growlm.distributed.process_group import DistributedContext
from growlm.distributed.sharded_tasks import gather_to_rank0


def write_consolidated(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dist_context: DistributedContext
) -> dict[str, str]:
    """Write tensors, sharded or not, to consolidated files; sharding does not change a byte of them.

    All ranks must call this with the tensors in the same order. Besides its own shards, rank 0 holds at most two
    full tensors: the one being gathered and the one being written. The other ranks hold none.

    Args:
        folder: Folder to write to; must exist on rank 0.
        stem: First part of the file names.
        tensors: Tensors to write, by name.
        dist_context: Process group.

    Returns:
        The SHA-256 of every file, by file name.

    Raises:
        DiskError: On rank 0, if a file cannot be written.
        PeerFailedError: On the other ranks, if rank 0 fails.
    """
    entries = [TensorInfo(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    gathered = (gather_to_rank0(tensor) for tensor in tensors.values())

    def make(name: str) -> Tensor:
        tensor = next(gathered)
        assert tensor is not None
        return tensor

    def write() -> dict[str, str]:
        try:
            return write_tensors(folder, stem, entries, make)
        finally:
            _exhaust(gathered)  # even after an error: the other ranks take part in every gather

    if not dist_context.is_rank0:
        _exhaust(gathered)
    return dist_context.run_on_rank0(write)


def _exhaust(gathered: Iterator[Tensor | None]) -> None:
    for _ in gathered:
        pass
