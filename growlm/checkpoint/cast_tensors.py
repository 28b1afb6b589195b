"""A tensor source in another precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource
from growlm.runtime.errors import UserError

ROW_CHUNK_ENTRIES = 2**22
"""Entries of a tensor that are compared or converted at a time."""


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


def iter_row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that each cover some megabytes of a tensor."""
    step = max(1, ROW_CHUNK_ENTRIES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
