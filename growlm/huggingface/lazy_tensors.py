"""Tensors made of the tensors of files, each when it is asked for."""

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
"""Entries of a tensor that are looked at or converted at a time."""


@dataclass(frozen=True)
class DerivedTensor:
    """A tensor that is made of others."""

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[Sequence[ReadTensor]], Tensor]


class MappedTensors:
    """A `TensorSource` over another one.

    Args:
        files: What there is.
        made: What is asked for, by name, in the order of writing.

    Raises:
        UserError: If the parts of one tensor are of different types.
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
        """Of all tensors."""
        return list(self._derived)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """A tensor: mapped from its file where it is there as it is, else made in memory."""
        made = self._derived[name]
        return made.make([partial(self.files.read, source) for source in made.sources])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor."""
        return self.read(name)[start:stop]

    def _dtype(self, name: str, made: DerivedTensor) -> torch.dtype:
        types = {self.files.info(source).dtype for source in made.sources}
        if len(types) > 1:
            words = ", ".join(sorted(map(str, types)))
            raise UserError(self.key, self.folder, f"the parts of {name} are of types {words}")
        return types.pop() if types else torch.float32


class CastTensors:
    """A `TensorSource` in another precision; no tensor is in memory in both.

    Args:
        files: What there is.
        dtype: Of everything.
    """

    def __init__(self, files: TensorSource, dtype: torch.dtype) -> None:
        self.files, self.folder, self.key = files, files.folder, files.key
        self.dtype = dtype

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return self.files.names

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        return TensorInfo(name, self.dtype, self.files.info(name).shape)

    def read(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            UserError: If numbers of it are beyond the type.
        """
        before = self.files.info(name)
        if before.dtype == self.dtype:
            return self.files.read(name)
        return self.read_rows(name, 0, before.shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor.

        Raises:
            UserError: If numbers of them are beyond the type.
        """
        shape = (max(0, stop - start), *self.files.info(name).shape[1:])
        converted = torch.empty(shape, dtype=self.dtype)
        for first, last in iter_row_chunks(shape):
            rows = self.files.read(name)[start + first : start + last]  # mapped while this takes
            converted[first:last] = rows
            if bool(converted[first:last].isinf().any()) and not bool(rows.isinf().any()):
                allowed = f"{name} has numbers beyond {torch.finfo(self.dtype).max:g}"
                raise UserError("dtype", str(self.dtype).removeprefix("torch."), allowed)
        return converted


def iter_row_chunks(shape: Shape) -> Iterator[tuple[int, int]]:
    """The first dimension in pieces, each of some megabytes."""
    step = max(1, ROW_CHUNK_ENTRIES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
