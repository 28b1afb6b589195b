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

from growlm.model.keyed_rng import generator_for, normal, seed_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 2**19
"""Numbers that are drawn at once where there are many: threads wait for each other at every block."""

ODD_STD = ((2.0**14 - 1) / 3) ** 0.5
"""Standard deviation of the odd numbers of 8 bits with a sign."""


@dataclass
class Draws:
    """Where the random entries of one growth come from, what was drawn, and the threads that grow.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone. In a `with` block, whose
    end ends the threads.
    """

    seed: int
    boundary_index: int = 0
    noise: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (of a stack, the largest), and whether it was `capped`."""
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False, compare=False)

    def at_once(self, make: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do something for every item, results in order. Each is done by one of the threads, which draws alone."""
        return list(self._threads().map(make, items))

    def normal(self, shape: tuple[int, ...], purpose: str, key: tuple[int, str]) -> Tensor:
        """Standard normal numbers in fp32; a stack of matrices gets one draw per matrix."""
        seeds = self._seeds(purpose, key)
        if len(shape) < 3:
            return normal(shape, *seeds)
        out = torch.empty(shape)
        for member in range(shape[0]):
            out[member] = normal(shape[1:], *seeds, member)
        return out

    def blocks(
        self,
        x: Tensor,
        dim: int,
        count: int,
        purpose: str,
        key: tuple[int, str],
        use: Callable[[Tensor, Tensor, int], None],
        *,
        stacked: bool,
        odd: bool = False,
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
        seeds = self._seeds(purpose, key)
        parts = [
            (part, member, index)
            for member, matrix in enumerate(x if stacked else [x])
            for index, part in enumerate(_parts(matrix, dim - stacked, count))
        ]

        def draw(part: Tensor, member: int, index: int) -> None:
            shape = list(part.shape)
            shape[dim - stacked] = count
            source, size = np.random.SFC64(seed_of(*seeds, member, index)), math.prod(shape)
            numbers = _odd(size, source) if odd else _normal(size, source)
            use(part, numbers.view(shape).to(x), member)

        if len(parts) == 1 or hasattr(_memory, "is_of_pool"):
            for part in parts:
                draw(*part)
        else:
            list(self._threads().map(draw, *zip(*parts, strict=True)))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=_begin_thread)
        return self._pool

    def __enter__(self) -> Draws:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; they begin again when needed.

        While they live, OpenMP counts more threads than cores, and lets those that train sleep between any two
        operations: a step takes up to twice as long.
        """
        vars(_memory).clear()  # of the thread that draws what is one block only
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                self._pool = None
                # They set it for themselves, and for all threads that begin after them.
                torch.set_num_threads(torch.get_num_threads())

    def share(self, mesh: DeviceMesh) -> None:
        """Let all processes know what each of them drew."""
        found: list[Any] = [None] * mesh.size()
        torch.distributed.all_gather_object(found, self.noise, group=mesh.get_group())
        self.noise = {key: drawn for noise in found for key, drawn in noise.items()}

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """`count` different numbers below `size`, in random order."""
        generator = generator_for(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    @staticmethod
    def silent() -> Draws:
        """Draws that are all zero: with them a chain makes what does not depend on chance."""
        return _Silent(seed=0)

    def _seeds(self, purpose: str, key: tuple[int, str]) -> tuple[object, ...]:
        return (self.seed, self.boundary_index, *key, purpose)


class _Silent(Draws):
    def normal(self, shape: tuple[int, ...], purpose: str, key: tuple[int, str]) -> Tensor:
        return torch.zeros(shape)

    def blocks(
        self,
        x: Tensor,
        dim: int,
        count: int,
        purpose: str,
        key: tuple[int, str],
        use: Callable[[Tensor, Tensor, int], None],
        *,
        stacked: bool,
        odd: bool = False,
    ) -> None:
        for member, part in enumerate(x if stacked else [x]):
            shape = list(part.shape)
            shape[dim - stacked] = count
            use(part, part.new_zeros(shape), member)


def _parts(x: Tensor, dim: int, count: int) -> Sequence[Tensor]:
    """Parts of about `BLOCK` numbers at most, across another dimension than `dim`; an even number of them."""
    if x.ndim < 2:
        return [x]
    numbers = x.numel() // x.shape[dim] * count
    parts = 2 * math.ceil(numbers / BLOCK / 2) if numbers > BLOCK else 1
    return x.chunk(parts, dim=1 if dim == 0 else 0)


_memory = threading.local()
"""A thread's own, used again for every block: new memory costs page faults."""


def _begin_thread() -> None:
    # One core each: by default every one of them would start OpenMP threads for all cores.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _memory.is_of_pool = True


def _buffers(size: int) -> tuple[Tensor, Tensor]:
    """Room for numbers, and for places in a table."""
    if getattr(_memory, "size", 0) < size:
        _memory.size = max(size, BLOCK)
        _memory.numbers = torch.empty(_memory.size, dtype=torch.float32)
        _memory.places = torch.empty(_memory.size, dtype=torch.int32)
    return _memory.numbers[:size], _memory.places[:size]


def _bits(size: int, dtype: torch.dtype, source: np.random.SFC64) -> Tensor:
    """Whole numbers of all bits alike, as many of them as fit in each 64 bits that the source gives."""
    words = -(-size * dtype.itemsize // 8)
    return torch.from_numpy(source.random_raw(words)).view(dtype)[:size]


def _odd(size: int, source: np.random.SFC64) -> Tensor:
    return _buffers(size)[0].copy_(_bits(size, torch.int8, source).bitwise_or_(1))


def _normal(size: int, source: np.random.SFC64) -> Tensor:
    """By 16 bits from a table of quantiles: Box and Muller's formulas take three times as long."""
    numbers, places = _buffers(size)
    places.copy_(_bits(size, torch.int16, source)).add_(2**15)
    return torch.index_select(normal_quantiles(), 0, places, out=numbers)


@cache
def normal_quantiles() -> Tensor:
    """(65536,), fp32: what stands for the normal distribution, each as likely; mean 0, standard deviation 1.

    The middles of slices of equal probability. The largest is 4.3; the fourth moment is 2.999 in place of 3.
    """
    half = torch.special.ndtri((torch.arange(2**15, dtype=torch.float64) + 0.5) / 2**16)
    half /= half.square().mean().sqrt()
    return torch.cat((half, -half.flip(0))).float()
