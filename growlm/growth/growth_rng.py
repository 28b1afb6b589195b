"""The random entries of one growth."""

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
"""Numbers that are drawn at once where there are many: threads wait for each other at every block."""

ODD_INTEGER_STD = ((2.0**14 - 1) / 3) ** 0.5
"""Standard deviation of the odd numbers of 8 bits with a sign."""


@dataclass
class GrowthRng:
    """Where the random entries of one growth come from, what was drawn, and the threads that grow.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone. In a `with` block, whose
    end ends the threads.
    """

    seed: int
    boundary_index: int = 0
    noise_levels: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (of a stack, the largest), and whether it was `capped`."""
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False, compare=False)

    def parallel_map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do something for every item, results in order. Each is done by one of the threads, which draws alone."""
        return list(self._get_pool().map(function, items))

    def normal(self, shape: tuple[int, ...], purpose: str, rng_key: tuple[int, str]) -> Tensor:
        """Standard normal numbers in fp32; a stack of matrices gets one draw per matrix."""
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
        """Draw numbers of mean 0 for a tensor and use them, by blocks, several at once.

        Drawing is the slowest part of a growth, so the bits are SFC64's (C. Doty-Humphrey, PractRand), which gives
        them in half of the time of torch's generator. Every block has a seed of its own, so that the numbers do
        not depend on the threads. Inside `at_once` one thread draws them all.

        Args:
            x: The tensor; blocks are parts of it, or of each member of a stack, across another dimension.
            dim: The dimension along which `count` numbers are wanted, in place of the size of x.
            count: Their number.
            purpose: What for.
            key: (operator index, new tensor name).
            use: Called with each part of x, its numbers, like x, which may be changed, and the member of the
                stack that it is of, else 0; several at once. Parts of a member lack the first dimension.
            stacked: Whether x is a stack, `dim` not its first.
            odd: Odd numbers from -127 to 127, all as likely, of deviation `ODD_STD`, in place of standard normal
                ones, in half of the time: enough to make copies differ, and never 0.
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

        if len(parts) == 1 or hasattr(_thread_buffers, "is_of_pool"):
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
        """End the threads; they begin again when needed.

        While they live, OpenMP counts more threads than cores, and lets those that train sleep between any two
        operations: a step takes up to twice as long.
        """
        vars(_thread_buffers).clear()  # of the thread that draws what is one block only
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                self._pool = None
                # They set it for themselves, and for all threads that begin after them.
                torch.set_num_threads(torch.get_num_threads())

    def gather_noise_levels(self, mesh: DeviceMesh) -> None:
        """Let all processes know what each of them drew."""
        found: list[Any] = [None] * mesh.size()
        torch.distributed.all_gather_object(found, self.noise_levels, group=mesh.get_group())
        self.noise_levels = {key: drawn for noise in found for key, drawn in noise.items()}

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """`count` different numbers below `size`, in random order."""
        generator = keyed_generator(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    @staticmethod
    def zeros() -> GrowthRng:
        """Draws that are all zero: with them a chain makes what does not depend on chance."""
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
    """Parts of about `BLOCK` numbers at most, across another dimension than `dim`; an even number of them."""
    if x.ndim < 2:
        return [x]
    numbers = x.numel() // x.shape[dim] * count
    parts = 2 * math.ceil(numbers / DRAW_BLOCK_ENTRIES / 2) if numbers > DRAW_BLOCK_ENTRIES else 1
    return x.chunk(parts, dim=1 if dim == 0 else 0)


_thread_buffers = threading.local()
"""A thread's own, used again for every block: new memory costs page faults."""


def _init_worker() -> None:
    # One core each: by default every one of them would start OpenMP threads for all cores.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _thread_buffers.is_of_pool = True


def _get_buffers(size: int) -> tuple[Tensor, Tensor]:
    """Room for numbers, and for places in a table."""
    if getattr(_thread_buffers, "size", 0) < size:
        _thread_buffers.size = max(size, DRAW_BLOCK_ENTRIES)
        _thread_buffers.numbers = torch.empty(_thread_buffers.size, dtype=torch.float32)
        _thread_buffers.places = torch.empty(_thread_buffers.size, dtype=torch.int32)
    return _thread_buffers.numbers[:size], _thread_buffers.places[:size]


def _random_integers(size: int, dtype: torch.dtype, source: np.random.SFC64) -> Tensor:
    """Whole numbers of all bits alike, as many of them as fit in each 64 bits that the source gives."""
    words = -(-size * dtype.itemsize // 8)
    return torch.from_numpy(source.random_raw(words)).view(dtype)[:size]


def _draw_odd_integers(size: int, source: np.random.SFC64) -> Tensor:
    return _get_buffers(size)[0].copy_(_random_integers(size, torch.int8, source).bitwise_or_(1))


def _draw_normal(size: int, source: np.random.SFC64) -> Tensor:
    """By 16 bits from a table of quantiles: Box and Muller's formulas take three times as long."""
    numbers, places = _get_buffers(size)
    places.copy_(_random_integers(size, torch.int16, source)).add_(2**15)
    return torch.index_select(normal_quantiles(), 0, places, out=numbers)


@cache
def normal_quantiles() -> Tensor:
    """(65536,), fp32: what stands for the normal distribution, each as likely; mean 0, standard deviation 1.

    The middles of slices of equal probability. The largest is 4.3; the fourth moment is 2.999 in place of 3.
    """
    half = torch.special.ndtri((torch.arange(2**15, dtype=torch.float64) + 0.5) / 2**16)
    half /= half.square().mean().sqrt()
    return torch.cat((half, -half.flip(0))).float()
