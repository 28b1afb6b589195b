"""A row of tokens to samples of equal length.

Sample i of a run is tokens [i·L, i·L + L + 1) of its row: a pure function of (seed, i), so that a phase that
starts at sample i goes on where the phase before it stopped, and so does a resumed run, whatever the batch sizes
were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset

from growlm.data.rows import Row
from growlm.errors import UserError


class PackedSamples(Dataset[torch.Tensor]):
    """Samples of an endless row, in any order.

    They are `sequence_length + 1` long and start `sequence_length` apart, so that every token is predicted once.

    Args:
        row: Of the run.
        sequence_length: Number of positions a model sees.
    """

    def __init__(self, row: Row, sequence_length: int) -> None:
        self.row, self.sequence_length = row, sequence_length

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sample `index` of the run, any number from 0 up: (sequence_length + 1,), int64."""
        position = index * self.sequence_length
        return torch.from_numpy(self.row.read(position, self.sequence_length + 1))

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """Several samples, as the loader asks for a batch: neighbours are read in one go."""
        first, count = indices[0], len(indices)
        if indices != list(range(first, first + count)):
            return [self[index] for index in indices]
        length = self.sequence_length
        tokens = torch.from_numpy(self.row.read(first * length, count * length + 1))
        return list(tokens.unfold(0, length + 1, length))

    def mark(self, index: int) -> dict[str, Any] | None:
        """None: nothing is needed to begin with any sample."""
        return None

    def recall(self, mark: dict[str, Any] | None) -> None:
        """Nothing to do."""


class HeldOutSamples(Dataset[torch.Tensor]):
    """Windows of the held-out documents, in order, each once.

    Args:
        tokens: Of the documents one after another, (num_tokens,).
        sequence_length: Number of positions a model sees.

    Raises:
        UserError: If there is not one whole window.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int) -> None:
        self.tokens, self.sequence_length = tokens, sequence_length
        self.num_windows = max(0, (len(tokens) - 1) // sequence_length)
        if self.num_windows == 0:
            raise UserError(
                "data",
                f"{len(tokens)} held-out tokens",
                f"one sample of sequence length {sequence_length} needs {sequence_length + 1}; "
                "use more documents, a smaller data.validation_every or a shorter sequence",
            )

    def __getitem__(self, index: int) -> torch.Tensor:
        """Window `index` below `num_windows`: (sequence_length + 1,), int64."""
        if not 0 <= index < self.num_windows:
            raise IndexError(index)
        start = index * self.sequence_length
        sample = self.tokens[start : start + self.sequence_length + 1]
        return torch.from_numpy(sample.astype(np.int64))


@dataclass(frozen=True)
class RankIndices(Sequence[int]):
    """Indices of the samples that one process reads in a phase: its part of every batch.

    The batches are the same whatever the number of processes, and their parts follow each other by rank.

    Args:
        start: Samples of the run before the phase.
        num_batches: Batches of the phase.
        batch_size: Samples of a batch, a multiple of `size`.
        rank: Of the process.
        size: Number of processes.
    """

    start: int
    num_batches: int
    batch_size: int
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return self.num_batches * self.batch_size // self.size

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        """The index of its `place`-th sample."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        part = self.batch_size // self.size
        batch, within = divmod(place % len(self), part)
        return self.start + batch * self.batch_size + self.rank * part + within
