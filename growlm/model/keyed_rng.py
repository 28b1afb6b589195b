"""Random numbers that depend only on a key, not on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: object) -> torch.Generator:
    """Return a CPU generator seeded by a hash of `key` (seed, boundary, tensor name ...).

    The same key gives the same numbers in memory, on disk and on every rank, whatever was drawn before. The
    global generator is not touched.
    """
    return torch.Generator().manual_seed(keyed_seed(*key))


def keyed_seed(*key: object) -> int:
    """Return a 63-bit hash of `key`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_normal(shape: tuple[int, ...], *key: object) -> torch.Tensor:
    """Draw standard normal numbers of the given shape, in fp32 on the CPU."""
    return torch.randn(shape, generator=keyed_generator(*key), dtype=torch.float32)
