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
ReadTensor = Callable[[], Tensor]
"""Reads a tensor."""


class TensorMapping(Protocol):
    """A relation between some tensors of ours and some of theirs."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """What shapes theirs have when ours have these."""

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Their tensor number `index`."""

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Our tensor number `index`."""


@dataclass(frozen=True)
class IdentityMapping:
    """The same tensor."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """One, of our shape."""
        return list(growlm_shapes)

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Ours."""
        return sources[index]()

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Theirs."""
        return sources[index]()


@dataclass(frozen=True)
class StackedMapping:
    """Ours is a stack, (members, ...); theirs are the members."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """One for each member."""
        (stack,) = growlm_shapes
        return [stack[1:]] * stack[0]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """A member."""
        return sources[0]()[index]

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """The stack, filled member by member."""
        first = sources[0]()
        stack = first.new_empty(len(sources), *first.shape)
        for number, member in enumerate(sources):
            stack[number].copy_(member())
        return stack


@dataclass(frozen=True)
class FusedMapping:
    """Theirs is one tensor: for each group, the group's share of every one of ours, along one dimension.

    With ours Q, K, V of two heads and `dim=0`: the rows Q₀ K₀ V₀ Q₁ K₁ V₁.

    Args:
        parts: How many of ours.
        dim: Along which they are concatenated; of equal size there.
        groups: Field of the model's config that says how many groups there are; None for one.
    """

    num_parts: int
    dim: int
    groups_field: str | None = None

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """One, as long along `dim` as all of ours."""
        if len(set(growlm_shapes)) > 1:
            raise AssertionError(f"shapes {growlm_shapes} cannot be fused")
        shape = list(growlm_shapes[0])
        shape[self.dim] *= self.num_parts
        return [tuple(shape)]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """All of ours, interleaved by group."""
        groups = self._num_groups(config)
        fused: Tensor | None = None
        for number, part in enumerate(sources):
            tensor = part()
            if fused is None:
                fused = tensor.new_empty(self.hf_shapes(config, [tuple(tensor.shape)])[0])
            places = fused.unflatten(self.dim, (groups, self.num_parts, -1))
            places.select(self.dim + 1, number).copy_(tensor.unflatten(self.dim, (groups, -1)))
        assert fused is not None
        return fused

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """One of ours, collected from all groups."""
        places = sources[0]().unflatten(self.dim, (self._num_groups(config), self.num_parts, -1))
        return places.select(self.dim + 1, index).flatten(self.dim, self.dim + 1).contiguous()

    def _num_groups(self, config: ModelConfig) -> int:
        return 1 if self.groups_field is None else int(getattr(config, self.groups_field))


@dataclass(frozen=True)
class AbsentMapping:
    """They have no such tensor; a model whose tensor is not zero cannot be theirs.

    Args:
        shape: Fields of the model's config, one for each dimension.
    """

    shape_fields: tuple[str, ...]

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """None."""
        return []

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Not to be asked for."""
        raise AssertionError("they have no such tensor")

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Zeros."""
        return torch.zeros([int(getattr(config, field)) for field in self.shape_fields])
