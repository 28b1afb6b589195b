"""Check that all processes hold the same tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growlm.distributed.dtensors import is_sharded
from growlm.distributed.process_group import DistributedContext
from growlm.runtime.errors import RunError

CHECKSUM_CHUNK_WORDS = 2**20
"""Words of a tensor that are summed at once, to bound the memory of the int64 copies."""


class GrowthError(RunError):
    """Error raised when a lossless growth changed the model's output, or another boundary check failed."""


def check_replicas_match(
    dist_context: DistributedContext, tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Check that all ranks hold the same tensors; sharded tensors are not compared.

    Args:
        dist_context: Process group of the run.
        tensors: Tensors by parameter, then by name.

    Raises:
        GrowthError: On all ranks, naming the first tensor that differs.
    """
    if dist_context.world_size == 1:
        return
    sums = {
        f"{p} {n}".strip(): compute_checksum(t)
        for p, state in tensors.items()
        for n, t in state.items()
        if isinstance(t, Tensor) and not is_sharded(t)
    }
    gathered = dist_context.all_gather(sums)
    for rank, other in enumerate(gathered):
        for name in gathered[0].keys() | other.keys():
            if gathered[0].get(name) != other.get(name):
                raise GrowthError(
                    f"after growing, {name} on rank {rank} differs from rank 0; the replicas would diverge"
                )


def compute_checksum(tensor: Tensor) -> int:
    """Return a checksum of the tensor's bits, independent of device and number of threads."""
    words = tensor.detach().contiguous().flatten()
    words = words.view(torch.int32 if words.element_size() % 4 == 0 else torch.uint8)
    weights = torch.arange(1, CHECKSUM_CHUNK_WORDS + 1, device=words.device)
    sums = [
        (chunk.long() * weights[: len(chunk)]).sum() for chunk in words.split(CHECKSUM_CHUNK_WORDS)
    ]
    return hash(tuple(int(chunk_sum) for chunk_sum in sums))
