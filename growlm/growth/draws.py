"""The random entries of one growth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from growlm.model.draws import generator_for, normal

BLOCK = 2**18
"""Entries that are drawn at once where there are many: they should stay in a core's cache."""


@dataclass
class Draws:
    """Where the random entries of one growth come from, and what was drawn.

    Every draw is seeded by (seed, boundary index, operator index, new tensor name) alone.
    """

    seed: int
    boundary_index: int = 0
    noise: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (of a stack, the largest), and whether it was `capped`."""

    def normal(self, shape: tuple[int, ...], purpose: str, key: tuple[int, str]) -> Tensor:
        """Standard normal numbers in fp32; a stack of matrices gets one draw per matrix."""
        if len(shape) < 3:
            return normal(shape, *self._seeds(purpose, key))
        out = torch.empty(shape)
        for member in range(shape[0]):
            out[member] = self.member(shape[1:], purpose, key, member)
        return out

    def member(
        self, shape: tuple[int, ...], purpose: str, key: tuple[int, str], member: int
    ) -> Tensor:
        """One matrix of a stack's draw, of `shape`."""
        return normal(shape, *self._seeds(purpose, key), member)

    def blocks(
        self, shapes: Sequence[tuple[int, ...]], purpose: str, key: tuple[int, str], member: int = 0
    ) -> Iterator[Tensor]:
        """Standard normal numbers in fp32 of one shape after another, drawn ahead by as many threads as torch has.

        Drawing is the slowest part of a growth. Every block has a seed of its own, so that the numbers do not
        depend on the threads.

        Args:
            shapes: Of the blocks.
            purpose: What for.
            key: (operator index, new tensor name).
            member: Of a stack.

        Yields:
            A block, to be used, or changed, before the next is asked for.
        """
        seeds = (*self._seeds(purpose, key), member)
        sizes = [math.prod(shape) for shape in shapes]

        def draw(index: int, buffer: Tensor) -> Tensor:
            return buffer[: sizes[index]].normal_(generator=generator_for(*seeds, index))

        threads = torch.get_num_threads()
        buffers = [torch.empty(max(sizes)) for _ in range(min(threads + 1, len(shapes)))]
        with ThreadPoolExecutor(threads) as pool:
            drawn = deque(pool.submit(draw, index, buffer) for index, buffer in enumerate(buffers))
            for index, shape in enumerate(shapes):
                yield drawn.popleft().result().view(shape)
                following = index + len(buffers)
                if following < len(shapes):
                    buffer = buffers[index % len(buffers)]
                    drawn.append(pool.submit(draw, following, buffer))

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """`count` different numbers below `size`, in random order."""
        generator = generator_for(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    def _seeds(self, purpose: str, key: tuple[int, str]) -> tuple[object, ...]:
        return (self.seed, self.boundary_index, *key, purpose)
