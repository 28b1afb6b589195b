"""The order of documents: pure functions of a seed and indices, so that any position in it is found at once.

Documents are shuffled within windows of consecutive ones, differently in every epoch. Several sources are mixed in
blocks: every block takes the same number of documents from each source, in an order of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from growlm.runtime.errors import UserError

MIXTURE_BLOCK_SIZE = 10_000
"""Number of documents after which every source has had exactly its share."""


def window_order(seed: int, epoch: int, window_index: int, size: int) -> np.ndarray:
    """Return the order of a window's documents: a permutation of 0 ... size-1, (size,), int64.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        window_index: Index of the window in the epoch.
        size: Documents in the window; an epoch's last window may have fewer than the others.
    """
    return _permutation(f"{seed} {epoch} {window_index}", size)


def mixture_order(seed: int, block_index: int, block_counts: Sequence[int]) -> np.ndarray:
    """Return the index of the source that each document of a block comes from, (sum of counts,), int64.

    Args:
        seed: Seed of the run.
        block_index: Index of the block.
        block_counts: Documents that every block takes from each source.
    """
    sources = np.repeat(np.arange(len(block_counts)), block_counts)
    return sources[_permutation(f"{seed} mixture {block_index}", len(sources))]


def compute_block_counts(weights: Mapping[str, float], key: str = "data.sources") -> list[int]:
    """Return how many documents a block of `MIXTURE_BLOCK_SIZE` takes from each source.

    Weights become shares by the largest-remainder method.

    Args:
        weights: Weight of each source, above 0; any sum.
        key: Setting that names the sources, for error messages.

    Raises:
        UserError: If a weight is not above 0, or too small for one document per block.
    """
    for name, weight in weights.items():
        if not weight > 0 or weight == float("inf"):
            raise UserError(f"{key}.{name}.weight", weight, "must be greater than 0, and finite")
    total = sum(weights.values())
    exact = [MIXTURE_BLOCK_SIZE * weight / total for weight in weights.values()]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: MIXTURE_BLOCK_SIZE - sum(counts)]:
        counts[index] += 1
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        if count == 0:
            reason = f"is less than one document in {MIXTURE_BLOCK_SIZE:,}; raise the weight or remove the source"
            raise UserError(f"{key}.{name}.weight", weight, reason)
    return counts


def _permutation(name: str, size: int) -> np.ndarray:
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randperm(size, generator=generator).numpy()
