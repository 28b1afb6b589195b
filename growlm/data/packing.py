"""Samples of equal length, cut from a token stream.

Sample i of a run is tokens [i·L, i·L + L + 1) of its stream: a pure function of (seed, i). A phase that starts at
sample i therefore continues where the phase before it stopped, and so does a resumed run, whatever the batch sizes
were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset

from growlm.data.token_stream import TokenStream
from growlm.runtime.errors import UserError


class Samples(Dataset[torch.Tensor]):
    """A dataset of samples, read one by one or several as a batch."""

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        """Return a batch of samples, (samples, sequence_length + 1)."""
        return torch.stack([self[index] for index in indices])


READ_AHEAD_TOKENS = 2**15
"""Number of tokens read at once: by the next training step, all that reading needs has left the CPU's caches."""


class PackedSamples(Samples):
    """Samples of an endless token stream, in any order.

    They are `sequence_length + 1` long and start `sequence_length` apart, so that every token is predicted once.

    Args:
        stream: Token stream of the run.
        sequence_length: Number of positions a model sees.
    """

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        self.stream, self.sequence_length = stream, sequence_length
        self._begin, self._tokens = 0, torch.empty(0, dtype=torch.int64)  # read-ahead buffer
        self._next = -1

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return sample `index` of the run (from 0, without end): (sequence_length + 1,), int64."""
        position = index * self.sequence_length
        return torch.from_numpy(self.stream.read(position, self.sequence_length + 1))

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        """Return a batch, (samples, sequence_length + 1); fastest for a range of consecutive samples."""
        if not isinstance(indices, range) or indices.step != 1:
            return super().__getitems__(indices)
        length = self.sequence_length
        tokens = self._read(indices.start * length, len(indices) * length + 1)
        return tokens.unfold(0, length + 1, length).clone(memory_format=torch.contiguous_format)

    def _read(self, position: int, count: int) -> torch.Tensor:
        """Return the stream's tokens `position` ... `position + count - 1`, from the read-ahead buffer."""
        new = count - 1  # the last token also begins the next batch
        start = position - self._begin
        if not 0 <= start <= len(self._tokens) - count:
            # Whole batches, and only in sequence: with several processes, each skips the others' shares.
            batches = max(1, READ_AHEAD_TOKENS // new) if position == self._next else 1
            self._tokens = torch.from_numpy(self.stream.read(position, batches * new + 1))
            self._begin, start = position, 0
        self._next = position + new
        return self._tokens[start : start + count]

    def state_dict(self, index: int) -> dict[str, Any] | None:
        """Return None: any sample can be read without a state."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Do nothing: any sample can be read without a state."""


class ValidationSamples(Samples):
    """Windows of the validation documents, in order, each once.

    Args:
        tokens: Token ids of the documents, one after another, (num_tokens,).
        sequence_length: Number of positions a model sees.

    Raises:
        UserError: If the tokens do not fill one window.
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
        """Return window `index` (below `num_windows`): (sequence_length + 1,), int64."""
        if not 0 <= index < self.num_windows:
            raise IndexError(index)
        start = index * self.sequence_length
        sample = self.tokens[start : start + self.sequence_length + 1]
        return torch.from_numpy(sample.astype(np.int64))


@dataclass(frozen=True)
class RankBatches(Sequence[range]):
    """Indices of the samples that one process reads in a phase: its share of each batch.

    The batches are the same whatever the number of processes, and their shares follow each other by rank.

    Args:
        first_sample: Index in the run of the phase's first sample.
        num_batches: Number of the phase's batches.
        batch_size: Samples per batch, a multiple of `world_size`.
        rank: Rank of the process.
        world_size: Number of processes.
    """

    first_sample: int
    num_batches: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.num_batches

    @overload
    def __getitem__(self, batch: int) -> range: ...

    @overload
    def __getitem__(self, batch: slice) -> Sequence[range]: ...

    def __getitem__(self, batch: int | slice) -> range | Sequence[range]:
        """Return the indices of this process's share of a batch."""
        if isinstance(batch, slice):
            return [self[i] for i in range(*batch.indices(self.num_batches))]
        share = self.batch_size // self.world_size
        first = (
            self.first_sample + range(self.num_batches)[batch] * self.batch_size + self.rank * share
        )
        return range(first, first + share)
