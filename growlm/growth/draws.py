"""The random entries of one growth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from growlm.model.draws import generator_for, normal


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

    def choice(self, size: int, count: int, *key: object) -> Tensor:
        """`count` different numbers below `size`, in random order."""
        generator = generator_for(self.seed, self.boundary_index, *key)
        return torch.randperm(size, generator=generator)[:count]

    def _seeds(self, purpose: str, key: tuple[int, str]) -> tuple[object, ...]:
        return (self.seed, self.boundary_index, *key, purpose)
