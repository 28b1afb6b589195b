"""Tensor sources that convert the tensors of another source lazily, each when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource
from growlm.huggingface.tensor_mapping import ReadTensor, Shape
from growlm.runtime.errors import UserError

ROW_CHUNK_ENTRIES = 2**22
"""Entries of a tensor that are compared or converted at a time."""


@dataclass(frozen=True)
class DerivedTensor:
    """Recipe for a tensor.

    Attributes:
        sources: Source tensors that it needs.
        shape: Its shape.
        make: Function that computes it.
        dtype_of: Source tensor whose dtype it has where it needs none; None for fp32.
    """

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[Sequence[ReadTensor]], Tensor]
    dtype_of: str | None = None


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

    def read(self, name: str) -> Tensor:
        """Read a tensor: memory-mapped where it is stored unchanged, else computed in memory."""
        return self.make(name, self.files.read)

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of the source's tensors that a tensor is computed from."""
        return self._derived[name].sources

    def make(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """Compute a tensor from other values than the source's: moments of its weights.

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


class CastTensors:
    """`TensorSource` that casts another one to a dtype; no tensor is in memory in both dtypes.

    Args:
        files: Underlying source.
        dtype: Dtype of all tensors.
    """

    def __init__(self, files: TensorSource, dtype: torch.dtype) -> None:
        self.files, self.folder, self.key = files, files.folder, files.key
        self.dtype = dtype

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return self.files.names

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        return TensorInfo(name, self.dtype, self.files.info(name).shape)

    def read(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            UserError: If it has values that overflow the dtype.
        """
        stored = self.files.info(name)
        if stored.dtype == self.dtype:
            return self.files.read(name)
        return self.read_rows(name, 0, stored.shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` up to `stop` of a tensor.

        Raises:
            UserError: If they have values that overflow the dtype.
        """
        shape = (max(0, stop - start), *self.files.info(name).shape[1:])
        converted = torch.empty(shape, dtype=self.dtype)
        for first, last in iter_row_chunks(shape):
            rows = self.files.read(name)[start + first : start + last]  # mapped for this chunk only
            converted[first:last] = rows
            if bool(converted[first:last].isinf().any()) and not bool(rows.isinf().any()):
                reason = f"{name} has values beyond {torch.finfo(self.dtype).max:g}"
                raise UserError("dtype", str(self.dtype).removeprefix("torch."), reason)
        return converted


def iter_row_chunks(shape: Shape) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that each cover some megabytes of a tensor."""
    step = max(1, ROW_CHUNK_ENTRIES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
