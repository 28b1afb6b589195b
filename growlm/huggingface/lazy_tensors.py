"""Tensor sources that convert the tensors of another source lazily, each when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource
from growlm.huggingface.tensor_mapping import ReadTensor, Shape
from growlm.runtime.errors import UserError


@dataclass(frozen=True)
class DerivedTensor:
    """Recipe for a tensor.

    Attributes:
        sources: Source tensors that it needs.
        shape: Its shape.
        make: Function that computes it.
        dtype_of: Source tensor whose dtype it takes if it is computed from none; None for fp32.
        is_copy: Whether it equals its only source and has another name.
    """

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[Sequence[ReadTensor]], Tensor]
    dtype_of: str | None = None
    is_copy: bool = False


class MappedTensors:
    """`TensorSource` whose tensors are computed from those of another source.

    Args:
        files: Underlying source.
        derived: Recipes by tensor name, in the order of writing.

    Raises:
        UserError: If the source tensors of one recipe have different dtypes.
    """

    def __init__(self, files: TensorSource, derived: Mapping[str, DerivedTensor]) -> None:
        self.files, self.folder, self.key = files, files.folder, files.key
        self._derived = dict(derived)
        self._infos = {
            name: TensorInfo(name, self._dtype(name, each), each.shape)
            for name, each in self._derived.items()
        }

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._derived)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        return self._infos[name]

    def copied_from(self, name: str) -> tuple[TensorSource, str] | None:
        """Return the source of a tensor that only changes its name; None for one that is computed."""
        derived = self._derived[name]
        return (self.files, derived.sources[0]) if derived.is_copy else None

    def read(self, name: str) -> Tensor:
        """Read a tensor: memory-mapped where it is stored unchanged, else computed in memory."""
        return self.make(name, self.files.read)

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of the source's tensors that a tensor is computed from."""
        return self._derived[name].sources

    def make(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """Compute a tensor from other values than the source's, such as moments of its weights.

        Args:
            name: Name of the tensor.
            read: Function that returns the value for a name of the source.
        """
        derived = self._derived[name]
        tensor = derived.make([partial(read, source) for source in derived.sources])
        return tensor if derived.sources else tensor.to(self._infos[name].dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` up to `stop` of a tensor."""
        return self.read(name)[start:stop]

    def _dtype(self, name: str, derived: DerivedTensor) -> torch.dtype:
        sources = derived.sources or filter(None, [derived.dtype_of])
        dtypes = {self.files.info(source).dtype for source in sources}
        if len(dtypes) > 1:
            listed = ", ".join(sorted(map(str, dtypes)))
            reason = f"the tensors that make up {name} have different dtypes: {listed}"
            raise UserError(self.key, self.folder, reason)
        return dtypes.pop() if dtypes else torch.float32


class LastTensorCache:
    """`TensorSource` that keeps the tensor of another one that was read last, where that is computed.

    The members of a stack of experts are tensors of their own in Hugging Face's files: read one after another,
    they are parts of a stack that is computed once.

    Args:
        source: Source whose tensors are computed when they are read.
    """

    def __init__(self, source: TensorSource) -> None:
        self.folder, self.key, self.info = source.folder, source.key, source.info
        self._source = source
        self._name: str | None = None
        self._tensor: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return self._source.names

    def copied_from(self, name: str) -> tuple[TensorSource, str]:
        """Return the tensor of the other source, which knows whether it is computed."""
        return self._source, name

    def read(self, name: str) -> Tensor:
        """Read a tensor; the one before is dropped first."""
        if self._tensor is None or self._name != name:
            self._tensor = None
            self._name, self._tensor = name, self._source.read(name)
        return self._tensor

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` up to `stop` of a tensor."""
        return self.read(name)[start:stop]
