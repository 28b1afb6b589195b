"""Define how growlm tensors correspond to Hugging Face tensors; each mapping is exactly invertible.

| mapping         | Hugging Face has                                                                          |
|-----------------|-------------------------------------------------------------------------------------------|
| IdentityMapping | the same tensor under another name                                                        |
| StackedMapping  | a separate tensor for each index of growlm's first dimension (experts)                    |
| FusedMapping    | one tensor for several growlm tensors, concatenated along a dimension, group by group     |
|                 | (attention heads)                                                                         |
| ConcatenatedMapping | one tensor for several of different sizes, one after the other, group by group        |
| TransposedMapping | the matrix transposed                                                                   |
| ZeroMapping     | a tensor of zeros that growlm does not have                                               |
| AbsentMapping   | no such tensor: growlm's has one value everywhere                                         |

Tensors are passed as functions that read them, so that a mapping holds no more in memory than it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from growlm.model.config import ModelConfig

Shape = tuple[int, ...]
ReadTensor = Callable[[], Tensor]
"""Function that reads a tensor."""


class TensorMapping(Protocol):
    """Correspondence between some growlm tensors and some Hugging Face tensors."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of the Hugging Face tensors for growlm tensors of the given shapes."""

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Compute the Hugging Face tensor with index `index` from the growlm tensors."""

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Compute the growlm tensor with index `index` from the Hugging Face tensors."""


@dataclass(frozen=True)
class IdentityMapping:
    """Mapping of a tensor that is the same on both sides."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the same shapes."""
        return list(growlm_shapes)

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return the growlm tensor."""
        return sources[index]()

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return the Hugging Face tensor."""
        return sources[index]()


@dataclass(frozen=True)
class StackedMapping:
    """Mapping between a growlm stack of shape (members, ...) and separate Hugging Face tensors per member."""

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shape of a member, once for each member."""
        (stack,) = growlm_shapes
        return [stack[1:]] * stack[0]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return one member of the stack."""
        return sources[0]()[index]

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Stack the members, reading one at a time."""
        first = sources[0]()
        stack = first.new_empty(len(sources), *first.shape)
        for number, member in enumerate(sources):
            stack[number].copy_(member())
        return stack


@dataclass(frozen=True)
class FusedMapping:
    """Mapping of several growlm tensors to one Hugging Face tensor that interleaves them group by group.

    For Q, K and V with two heads and `dim=0`, its rows are Q₀ K₀ V₀ Q₁ K₁ V₁.

    Args:
        num_parts: Number of growlm tensors, all of the same shape.
        dim: Dimension along which they are concatenated.
        groups_field: `ModelConfig` field that holds the number of groups; None for `groups`.
        groups: Number of groups where no field holds it.
    """

    num_parts: int
    dim: int
    groups_field: str | None = None
    groups: int = 1

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the one fused shape: `dim` is `num_parts` times as long."""
        if len(set(growlm_shapes)) > 1:
            raise AssertionError(f"shapes {growlm_shapes} cannot be fused")
        shape = list(growlm_shapes[0])
        shape[self.dim] *= self.num_parts
        return [tuple(shape)]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Interleave the growlm tensors by group."""
        num_groups = self._num_groups(config)
        fused: Tensor | None = None
        for number, part in enumerate(sources):
            tensor = part()
            if fused is None:
                fused = tensor.new_empty(self.hf_shapes(config, [tuple(tensor.shape)])[0])
            view = fused.unflatten(self.dim, (num_groups, self.num_parts, -1))
            view.select(self.dim + 1, number).copy_(tensor.unflatten(self.dim, (num_groups, -1)))
        assert fused is not None
        return fused

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Collect one growlm tensor from all groups of the fused tensor."""
        view = sources[0]().unflatten(self.dim, (self._num_groups(config), self.num_parts, -1))
        return view.select(self.dim + 1, index).flatten(self.dim, self.dim + 1).contiguous()

    def _num_groups(self, config: ModelConfig) -> int:
        return self.groups if self.groups_field is None else int(getattr(config, self.groups_field))


@dataclass(frozen=True)
class ConcatenatedMapping:
    """Mapping of several growlm tensors, of different sizes, to one that concatenates their rows.

    With groups, the rows of each tensor are divided among them, and those of a group come before the next group's.

    Args:
        axes: Axis of each growlm tensor's rows.
        groups_field: `ModelConfig` field that holds the number of groups; None for a single group.
    """

    axes: tuple[str, ...]
    groups_field: str | None = None

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the one shape, with the sum of the rows."""
        return [(sum(shape[0] for shape in growlm_shapes), *growlm_shapes[0][1:])]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Concatenate the growlm tensors."""
        groups = self._num_groups(config)
        return torch.cat([source().unflatten(0, (groups, -1)) for source in sources], 1).flatten(
            0, 1
        )

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return the rows of one growlm tensor."""
        sizes, groups = config.axis_sizes(), self._num_groups(config)
        rows = sources[0]().unflatten(0, (groups, -1))
        parts = rows.split([sizes[axis] // groups for axis in self.axes], dim=1)
        return parts[index].flatten(0, 1).contiguous()

    def _num_groups(self, config: ModelConfig) -> int:
        return 1 if self.groups_field is None else int(getattr(config, self.groups_field))


@dataclass(frozen=True)
class TransposedMapping:
    """Mapping of matrices that Hugging Face stores transposed; vectors stay as they are.

    Args:
        inner: Mapping before the transposition.
    """

    inner: TensorMapping

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the transposed shapes."""
        return [shape[::-1] for shape in self.inner.hf_shapes(config, growlm_shapes)]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Transpose the inner mapping's tensor."""
        return _transpose(self.inner.make_hf_tensor(config, sources, index))

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Transpose the Hugging Face tensors, and apply the inner mapping."""
        transposed = [partial(_read_transposed, source) for source in sources]
        return self.inner.make_growlm_tensor(config, transposed, index).contiguous()


def _transpose(x: Tensor) -> Tensor:
    return x.T.contiguous() if x.ndim == 2 else x


def _read_transposed(source: ReadTensor) -> Tensor:
    return _transpose(source())


@dataclass(frozen=True)
class ZeroMapping:
    """Mapping of a Hugging Face tensor that growlm does not have: it is all zeros.

    Args:
        sizes: Its shape: numbers, or `ModelConfig` fields that hold them.
    """

    sizes: tuple[int | str, ...]

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the tensor's shape."""
        sizes = (size if isinstance(size, int) else getattr(config, size) for size in self.sizes)
        return [tuple(int(size) for size in sizes)]

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return zeros in the precision of the given tensor."""
        return sources[0]().new_zeros(self.hf_shapes(config, [])[0])

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Raise an error: growlm has no such tensor."""
        raise AssertionError("growlm has no such tensor")


@dataclass(frozen=True)
class AbsentMapping:
    """Mapping of a growlm tensor that Hugging Face does not have: only one value can be exported.

    Args:
        shape_fields: `ModelConfig` fields that hold the tensor's shape, one per dimension.
        value: Value of all its entries.
        is_weight: Whether it is a weight, in the precision of the others; a model in which it has other values
            leaves in another class.
    """

    shape_fields: tuple[str, ...]
    value: float = 0.0
    is_weight: bool = False

    def hf_shapes(self, config: ModelConfig, growlm_shapes: Sequence[Shape]) -> list[Shape]:
        """Return no shapes."""
        return []

    def make_hf_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Raise an error: there is no Hugging Face tensor."""
        raise AssertionError("Hugging Face has no such tensor")

    def make_growlm_tensor(
        self, config: ModelConfig, sources: Sequence[ReadTensor], index: int
    ) -> Tensor:
        """Return the tensor that Hugging Face's class computes as if it had, in fp32."""
        shape = [int(getattr(config, field)) for field in self.shape_fields]
        return torch.full(shape, self.value)
