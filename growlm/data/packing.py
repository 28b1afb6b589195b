"""A row of tokens to samples of equal length.

Sample i of a run is tokens [i·L, i·L + L + 1) of its row: a pure function of (seed, i), so that a phase that
starts at sample i goes on where the phase before it stopped, and so does a resumed run, whatever the batch sizes
were.
"""

from __future__ import annotations

from typing import Any

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


def phase_indices(start: int, count: int) -> range:
    """Indices of the `count` samples that a phase reads, if the phases before it read `start`."""
    return range(start, start + count)
