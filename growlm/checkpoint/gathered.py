"""Files of whole tensors out of sharded ones: gathered one by one, written by the first process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from growlm.checkpoint.tensor_files import Entry, write_tensors
from growlm.sharding import whole
from growlm.world import World


def write_gathered(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], world: World
) -> dict[str, str]:
    """`write_tensors` for tensors that are there already, sharded or not; the files are the same to the bit.

    All processes must ask for it, with the tensors in the same order. None ever has more than its own rows and
    about one whole tensor.

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
    entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    gathered = (whole(tensor) for tensor in tensors.values())

    def write() -> dict[str, str]:
        try:
            return write_tensors(folder, stem, entries, lambda name: next(gathered))
        finally:
            _exhaust(gathered)  # also where writing failed: the others wait in every gathering

    if not world.is_first:
        _exhaust(gathered)
    return world.first(write)


def _exhaust(gathered: Iterator[Tensor]) -> None:
    for _ in gathered:
        pass
