"""Files of whole tensors out of sharded ones: gathered one by one, written by the first process."""

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
    """`write_tensors` for tensors that are there already, sharded or not; the files are the same to the bit.

    All processes must ask for it, with the tensors in the same order. The first one has a whole tensor beside its
    own rows, and the one before it while that is being written; the others have none.

    Args:
        folder: Exists, for the first process.
        stem: Of the files' names.
        tensors: To be written.
        world: All processes.

    Returns:
        The SHA-256 of every file, by its name.

    Raises:
        DiskError: In the first process, if a file cannot be written.
        EndedElsewhereError: In the others, then.
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
            _exhaust(gathered)  # also where writing failed: the others wait in every gathering

    if not dist_context.is_rank0:
        _exhaust(gathered)
    return dist_context.run_on_rank0(write)


def _exhaust(gathered: Iterator[Tensor | None]) -> None:
    for _ in gathered:
        pass
