"""Random numbers for one growth."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from growlm.model.keyed_rng import keyed_generator, keyed_normal, keyed_seed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
R = TypeVar("R")

DRAW_BLOCK_ENTRIES = 2**19
"""The number of entries drawn at once for large tensors; threads wait for each other at every block."""

ODD_INTEGER_STD = ((2.0**14 - 1) / 3) ** 0.5
"""The standard deviation of the odd signed 8-bit integers."""


@dataclass
class GrowthRng:
    """The random state of one growth, a record of the noise that was drawn, and the threads that grow tensors.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone. Use it as a context
    manager, which stops the threads on exit.
    """

    seed: int
    boundary_index: int = 0
    noise_levels: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (for a stack, the largest), and whether it was `capped`."""
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False, compare=False)

    def parallel_map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function to every item on the threads, one thread per item; results keep the order."""
        return list(self._get_pool().map(function, items))

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
        not depend on the number of threads. Inside `parallel_map` one thread draws all blocks.

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

        if len(parts) == 1 or hasattr(_thread_buffers, "is_worker"):
            for part in parts:
                draw(*part)
        else:
            list(self._get_pool().map(draw, *zip(*parts, strict=True)))

    def _get_pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=_init_worker)
        return self._pool

    def __enter__(self) -> GrowthRng:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads; they are started again when needed.

        While they live, OpenMP counts more threads than cores and lets the threads that train sleep between
        any two operations: a training step takes up to twice as long.
        """
        vars(_thread_buffers).clear()  # this thread's own: it draws tensors of a single block
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                self._pool = None
                # The workers set it to 1 for themselves and for all threads that start after them.
                torch.set_num_threads(torch.get_num_threads())

    def gather_noise_levels(self, mesh: DeviceMesh) -> None:
        """Share the recorded noise levels of all processes with each of them."""
        gathered: list[Any] = [None] * mesh.size()
        torch.distributed.all_gather_object(gathered, self.noise_levels, group=mesh.get_group())
        self.noise_levels = {key: level for levels in gathered for key, level in levels.items()}

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


def _init_worker() -> None:
    # One core per worker: by default each of them would start OpenMP threads for all cores.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _thread_buffers.is_worker = True


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
