"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `key` (seed, boundary, tensor name ...).

    The same key gives the same numbers in memory, on disk and on every rank, whatever was drawn before, and
    the global generator is not touched.
    """
    return torch.Generator().manual_seed(keyed_seed(*key))


def keyed_seed(*key: object) -> int:
    """A hash of `key`, 63 bits."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_normal(shape: tuple[int, ...], *key: object) -> torch.Tensor:
    """Standard normal numbers, drawn in fp32 on the CPU in the full shape."""
    return torch.randn(shape, generator=keyed_generator(*key), dtype=torch.float32)
