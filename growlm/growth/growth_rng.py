"""Random numbers for one growth."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from growlm.growth.noise_log import NoiseLog
from growlm.growth.threads import GrowthThreads
from growlm.model.keyed_rng import keyed_generator, keyed_normal, keyed_seed

DRAW_BLOCK_ENTRIES = 2**19
"""The number of entries drawn at once for large tensors; threads wait for each other at every block."""

ODD_INTEGER_STD = ((2.0**14 - 1) / 3) ** 0.5
"""The standard deviation of the odd signed 8-bit integers."""


@dataclass
class GrowthRng:
    """The random numbers of one growth.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone. Use it as a context
    manager, which stops the threads on exit.

    Args:
        seed: Seed of the run.
        boundary_index: Number of the growth in its run; part of every seed.
        noise_log: Record of the noise that is drawn.
        threads: Threads that draw and that grow tensors.
    """

    seed: int
    boundary_index: int = 0
    noise_log: NoiseLog = field(default_factory=NoiseLog)
    threads: GrowthThreads = field(default_factory=GrowthThreads, repr=False, compare=False)

    def normal(self, shape: tuple[int, ...], purpose: str, rng_key: tuple[int, str]) -> Tensor:
        """Return standard normal numbers in fp32; a stack of matrices gets one draw per matrix."""
        seeds = self._seed_key(purpose, rng_key)
        if len(shape) < 3:
            return keyed_normal(shape, *seeds)
        out = torch.empty(shape)
        for member in range(shape[0]):
            out[member] = keyed_normal(shape[1:], *seeds, member)
        return out

    def draw_in_blocks(
        self,
        x: Tensor,
        dim: int,
        count: int,
        purpose: str,
        rng_key: tuple[int, str],
        consume: Callable[[Tensor, Tensor, int], None],
        *,
        stacked: bool,
        odd_integers: bool = False,
    ) -> None:
        """Draw random numbers of mean 0 for a tensor and pass them on block by block, several blocks at once.

        Drawing is the slowest part of a growth, so the bits come from SFC64 (C. Doty-Humphrey, PractRand),
        which takes half the time of torch's generator. Every block has its own seed, so that the numbers do
        not depend on the number of threads. Inside `GrowthThreads.map` one thread generates all blocks.

        Args:
            x: Tensor; blocks are parts of it, or of each member of a stack, split across another dimension.
            dim: Dimension along which `count` numbers are wanted, instead of the size of x.
            count: Number of entries along `dim`.
            purpose: Purpose of the numbers; part of the seed.
            rng_key: (operator index, new tensor name); part of the seed.
            consume: Function called with each part of x, its numbers (of x's dtype and device; may be
                changed), and the index of the member of the stack, else 0; called from several threads at
                once. Parts of a member lack the first dimension.
            stacked: Whether x is a stack and `dim` is not its first dimension.
            odd_integers: Whether to draw odd integers from -127 to 127 with equal probability (standard
                deviation `ODD_INTEGER_STD`) instead of standard normal numbers. That takes half the time, is
                enough to make copies differ, and never gives 0.
        """
        seeds = self._seed_key(purpose, rng_key)
        parts = [
            (part, member, index)
            for member, matrix in enumerate(x if stacked else [x])
            for index, part in enumerate(_split_into_blocks(matrix, dim - stacked, count))
        ]

        def draw(part: Tensor, member: int, index: int) -> None:
            shape = list(part.shape)
            shape[dim - stacked] = count
            source, size = np.random.SFC64(keyed_seed(*seeds, member, index)), math.prod(shape)
            numbers = (
                _draw_odd_integers(size, source) if odd_integers else _draw_normal(size, source)
            )
            consume(part, numbers.view(shape).to(x), member)

        if len(parts) == 1:
            draw(*parts[0])
        else:
            self.threads.map(lambda part: draw(*part), parts)

    def __enter__(self) -> GrowthRng:
        return self

    def __exit__(self, *_: object) -> None:
        vars(_thread_buffers).clear()  # this thread's own: it draws tensors of a single block
        self.threads.close()

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """Return `count` different integers below `size`, in random order."""
        generator = keyed_generator(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    @staticmethod
    def zeros() -> GrowthRng:
        """Return a generator whose numbers are all zero, to compute what does not depend on chance."""
        return _ZeroRng(seed=0)

    def _seed_key(self, purpose: str, rng_key: tuple[int, str]) -> tuple[object, ...]:
        return (self.seed, self.boundary_index, *rng_key, purpose)


class _ZeroRng(GrowthRng):
    def normal(self, shape: tuple[int, ...], purpose: str, rng_key: tuple[int, str]) -> Tensor:
        return torch.zeros(shape)

    def draw_in_blocks(
        self,
        x: Tensor,
        dim: int,
        count: int,
        purpose: str,
        rng_key: tuple[int, str],
        consume: Callable[[Tensor, Tensor, int], None],
        *,
        stacked: bool,
        odd_integers: bool = False,
    ) -> None:
        for member, part in enumerate(x if stacked else [x]):
            shape = list(part.shape)
            shape[dim - stacked] = count
            consume(part, part.new_zeros(shape), member)


def _split_into_blocks(x: Tensor, dim: int, count: int) -> Sequence[Tensor]:
    """Split x across another dimension than `dim` into an even number of blocks (or one) of limited size."""
    if x.ndim < 2:
        return [x]
    numbers = x.numel() // x.shape[dim] * count
    parts = 2 * math.ceil(numbers / DRAW_BLOCK_ENTRIES / 2) if numbers > DRAW_BLOCK_ENTRIES else 1
    return x.chunk(parts, dim=1 if dim == 0 else 0)


_thread_buffers = threading.local()
"""Buffers of each thread, reused for every block: new memory costs page faults."""


def _get_buffers(size: int) -> tuple[Tensor, Tensor]:
    """Return this thread's buffers for numbers and for table indices."""
    if getattr(_thread_buffers, "size", 0) < size:
        _thread_buffers.size = max(size, DRAW_BLOCK_ENTRIES)
        _thread_buffers.numbers = torch.empty(_thread_buffers.size, dtype=torch.float32)
        _thread_buffers.indices = torch.empty(_thread_buffers.size, dtype=torch.int32)
    return _thread_buffers.numbers[:size], _thread_buffers.indices[:size]


def _random_integers(size: int, dtype: torch.dtype, source: np.random.SFC64) -> Tensor:
    """Return uniformly random integers, as many as fit into each 64 bits that the generator yields."""
    words = -(-size * dtype.itemsize // 8)
    return torch.from_numpy(source.random_raw(words)).view(dtype)[:size]


def _draw_odd_integers(size: int, source: np.random.SFC64) -> Tensor:
    return _get_buffers(size)[0].copy_(_random_integers(size, torch.int8, source).bitwise_or_(1))


def _draw_normal(size: int, source: np.random.SFC64) -> Tensor:
    """Look up 16-bit integers in a table of quantiles; the Box-Muller transform takes three times as long."""
    numbers, indices = _get_buffers(size)
    indices.copy_(_random_integers(size, torch.int16, source)).add_(2**15)
    return torch.index_select(normal_quantiles(), 0, indices, out=numbers)


@cache
def normal_quantiles() -> Tensor:
    """Return (65536,), fp32: equally likely values that represent the normal distribution, with mean 0 and std 1.

    They are the middles of slices of equal probability. The largest is 4.3; the fourth moment is 2.999
    instead of 3.
    """
    half = torch.special.ndtri((torch.arange(2**15, dtype=torch.float64) + 0.5) / 2**16)
    half /= half.square().mean().sqrt()
    return torch.cat((half, -half.flip(0))).float()
