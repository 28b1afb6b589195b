"""The random entries of one growth."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growlm.model.draws import generator_for, normal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BLOCK = 2**18
"""Entries that are drawn at once where there are many: they should stay in a core's cache."""

UNIFORM_STD = ((2.0**30 - 1) / 3) ** 0.5
"""Standard deviation of the odd numbers of 16 bits with a sign."""


@dataclass
class Draws:
    """Where the random entries of one growth come from, and what was drawn.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone.
    """

    seed: int
    boundary_index: int = 0
    noise: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (of a stack, the largest), and whether it was `capped`."""
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False, compare=False)

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
        member: int,
        use: Callable[[Tensor, Tensor], None],
        uniform: float | None = None,
    ) -> None:
        """Draw numbers of mean 0 for a tensor and use them, by blocks, in all torch threads.

        Drawing is the slowest part of a growth. Every block has a seed of its own, so that the numbers do not
        depend on the threads.

        Args:
            x: The tensor; blocks are parts of it across another dimension than `dim`.
            dim: The dimension along which `count` numbers are wanted, in place of the size of x.
            count: Their number.
            purpose: What for.
            key: (operator index, new tensor name).
            member: Of a stack.
            use: Called with each part of x and its numbers, like x, which may be changed; several at once.
            uniform: Uniform numbers of this deviation in place of standard normal ones, in a third of the time; 16
                bits, never 0. `UNIFORM_STD` is had without multiplying.
        """
        parts: Sequence[Tensor] = [x]
        if x.ndim > 1:
            across = 1 if dim == 0 else 0
            per_row = x.numel() // (x.shape[dim] * x.shape[across]) * count
            parts = x.split(max(1, BLOCK // per_row), dim=across)
        seeds = (*self._seeds(purpose, key), member)

        def draw(index: int) -> None:
            part = parts[index]
            shape = (*part.shape[:dim], count, *part.shape[dim + 1 :])
            generator, size = generator_for(*seeds, index), math.prod(shape)
            numbers = (
                _normal(size, generator) if uniform is None else _uniform(size, generator, uniform)
            )
            use(part, numbers.view(shape).to(x))

        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads())
        list(self._pool.map(draw, range(len(parts))))

    def end_threads(self) -> None:
        """End the threads that drew; they begin again when needed.

        While they live, OpenMP counts more threads than cores, and lets those that train sleep between any two
        operations: a step takes up to twice as long.
        """
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def share(self, mesh: DeviceMesh) -> None:
        """Let all processes know what each of them drew."""
        found: list[Any] = [None] * mesh.size()
        torch.distributed.all_gather_object(found, self.noise, group=mesh.get_group())
        self.noise = {key: drawn for noise in found for key, drawn in noise.items()}

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """`count` different numbers below `size`, in random order."""
        generator = generator_for(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    def _seeds(self, purpose: str, key: tuple[int, str]) -> tuple[object, ...]:
        return (self.seed, self.boundary_index, *key, purpose)


_memory = threading.local()
"""A thread's own, used again for every block: new memory costs page faults."""


def _buffer(size: int) -> Tensor:
    if getattr(_memory, "size", 0) < size:
        _memory.size = max(size, BLOCK)
        _memory.numbers = torch.empty(_memory.size)
        _memory.bits = torch.empty(-(-_memory.size // 4), dtype=torch.int64)
    return _memory.numbers[:size]


def _normal(size: int, generator: torch.Generator) -> Tensor:
    return _buffer(size).normal_(generator=generator)


def _uniform(size: int, generator: torch.Generator, std: float) -> Tensor:
    """Odd numbers of 16 bits, four of each 64 bits that the generator gives."""
    numbers, bits = _buffer(size), _memory.bits[: -(-size // 4)]
    odd = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[:size].bitwise_or_(1)
    numbers.copy_(odd)
    return numbers if std == UNIFORM_STD else numbers.mul_(std / UNIFORM_STD)
