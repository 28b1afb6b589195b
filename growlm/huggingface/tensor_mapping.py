"""How tensors of ours lie in tensors of theirs. Each form says both directions, and they undo each other exactly.

| form    | theirs                                                                                   |
|---------|------------------------------------------------------------------------------------------|
| Same    | the same tensor under another name                                                       |
| Stacked | a tensor for each member of our first dimension (experts)                                |
| Fused   | one tensor for several of ours, concatenated along a dimension, group by group (heads)   |
| Absent  | nothing: ours is all zeros                                                               |

Tensors come as functions that read them, so that a form holds no more of them than it must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from growlm.model.config import ModelConfig

Shape = tuple[int, ...]
Part = Callable[[], Tensor]
"""Reads a tensor."""


class Form(Protocol):
    """A relation between some tensors of ours and some of theirs."""

    def their_shapes(self, config: ModelConfig, ours: Sequence[Shape]) -> list[Shape]:
        """What shapes theirs have when ours have these."""

    def to_theirs(self, config: ModelConfig, ours: Sequence[Part], index: int) -> Tensor:
        """Their tensor number `index`."""

    def to_ours(self, config: ModelConfig, theirs: Sequence[Part], index: int) -> Tensor:
        """Our tensor number `index`."""


@dataclass(frozen=True)
class Same:
    """The same tensor."""

    def their_shapes(self, config: ModelConfig, ours: Sequence[Shape]) -> list[Shape]:
        """One, of our shape."""
        return list(ours)

    def to_theirs(self, config: ModelConfig, ours: Sequence[Part], index: int) -> Tensor:
        """Ours."""
        return ours[index]()

    def to_ours(self, config: ModelConfig, theirs: Sequence[Part], index: int) -> Tensor:
        """Theirs."""
        return theirs[index]()


@dataclass(frozen=True)
class Stacked:
    """Ours is a stack, (members, ...); theirs are the members."""

    def their_shapes(self, config: ModelConfig, ours: Sequence[Shape]) -> list[Shape]:
        """One for each member."""
        (stack,) = ours
        return [stack[1:]] * stack[0]

    def to_theirs(self, config: ModelConfig, ours: Sequence[Part], index: int) -> Tensor:
        """A member."""
        return ours[0]()[index]

    def to_ours(self, config: ModelConfig, theirs: Sequence[Part], index: int) -> Tensor:
        """The stack, filled member by member."""
        first = theirs[0]()
        stack = first.new_empty(len(theirs), *first.shape)
        for number, member in enumerate(theirs):
            stack[number].copy_(member())
        return stack


@dataclass(frozen=True)
class Fused:
    """Theirs is one tensor: for each group, the group's share of every one of ours, along one dimension.

    With ours Q, K, V of two heads and `dim=0`: the rows Q₀ K₀ V₀ Q₁ K₁ V₁.

    Args:
        parts: How many of ours.
        dim: Along which they are concatenated; of equal size there.
        groups: Field of the model's config that says how many groups there are; None for one.
    """

    parts: int
    dim: int
    groups: str | None = None

    def their_shapes(self, config: ModelConfig, ours: Sequence[Shape]) -> list[Shape]:
        """One, as long along `dim` as all of ours."""
        if len(set(ours)) > 1:
            raise AssertionError(f"shapes {ours} cannot be fused")
        shape = list(ours[0])
        shape[self.dim] *= self.parts
        return [tuple(shape)]

    def to_theirs(self, config: ModelConfig, ours: Sequence[Part], index: int) -> Tensor:
        """All of ours, interleaved by group."""
        groups = self._groups(config)
        fused: Tensor | None = None
        for number, part in enumerate(ours):
            tensor = part()
            if fused is None:
                fused = tensor.new_empty(self.their_shapes(config, [tuple(tensor.shape)])[0])
            places = fused.unflatten(self.dim, (groups, self.parts, -1))
            places.select(self.dim + 1, number).copy_(tensor.unflatten(self.dim, (groups, -1)))
        assert fused is not None
        return fused

    def to_ours(self, config: ModelConfig, theirs: Sequence[Part], index: int) -> Tensor:
        """One of ours, collected from all groups."""
        places = theirs[0]().unflatten(self.dim, (self._groups(config), self.parts, -1))
        return places.select(self.dim + 1, index).flatten(self.dim, self.dim + 1).contiguous()

    def _groups(self, config: ModelConfig) -> int:
        return 1 if self.groups is None else int(getattr(config, self.groups))


@dataclass(frozen=True)
class Absent:
    """They have no such tensor; a model whose tensor is not zero cannot be theirs.

    Args:
        shape: Fields of the model's config, one for each dimension.
    """

    shape: tuple[str, ...]

    def their_shapes(self, config: ModelConfig, ours: Sequence[Shape]) -> list[Shape]:
        """None."""
        return []

    def to_theirs(self, config: ModelConfig, ours: Sequence[Part], index: int) -> Tensor:
        """Not to be asked for."""
        raise AssertionError("they have no such tensor")

    def to_ours(self, config: ModelConfig, theirs: Sequence[Part], index: int) -> Tensor:
        """Zeros."""
        return torch.zeros([int(getattr(config, field)) for field in self.shape])
