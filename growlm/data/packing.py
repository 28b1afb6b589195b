"""Documents to one row of tokens, and that row to samples of equal length.

Sample i of a run is a pure function of (seed, i): a phase that starts at sample i goes on where the
phase before it stopped, and so does a resumed run, whatever the batch sizes were.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Dataset

from growlm.data.tokenizers import Tokenizer
from growlm.errors import UserError

DOCUMENTS_PER_BATCH = 1000


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A tokenized corpus in its two parts, which share no document.

    Attributes:
        train: Token ids, (num_tokens,); uint16 where the vocabulary fits into it, uint32 otherwise.
        validation: The same of the held-out documents.
        train_documents: Number of documents in `train`.
        validation_documents: Number of documents in `validation`.
        train_bytes: Their length as UTF-8 text; ends of text do not count.
        validation_bytes: The same of `validation`.
    """

    train: np.ndarray
    validation: np.ndarray
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int


def tokenize_documents(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    validation_every: int,
    progress: Callable[[int], None] | None = None,
) -> TokenizedCorpus:
    """Tokenize documents, each followed by the end of text, and hold every n-th of them out.

    Memory is that of the token arrays and of one batch of documents.

    Args:
        documents: Texts, read once and in order.
        tokenizer: What encodes them.
        validation_every: Documents n-1, 2n-1, ... of this n are held out; at least 2.
        progress: Called with the number of documents done, after every batch of them.

    Raises:
        UserError: If `validation_every` is below 2, which would leave nothing to train on.
    """
    if validation_every < 2:
        raise UserError("data.validation_every", validation_every, "must be at least 2")
    typecode = "H" if tokenizer.vocab_size <= 1 << 16 else "I"
    train, validation = _Part(array(typecode)), _Part(array(typecode))
    remaining, done = iter(documents), 0
    while batch := list(islice(remaining, DOCUMENTS_PER_BATCH)):
        for index, ids in enumerate(tokenizer.encode_batch(batch), start=done):
            held_out = index % validation_every == validation_every - 1
            part = validation if held_out else train
            part.tokens.extend(ids)
            part.tokens.append(tokenizer.end_of_text)
            part.num_documents += 1
            part.num_bytes += len(batch[index - done].encode("utf-8", "replace"))
        done += len(batch)
        if progress is not None:
            progress(done)
    return TokenizedCorpus(
        train=np.asarray(train.tokens),
        validation=np.asarray(validation.tokens),
        train_documents=train.num_documents,
        validation_documents=validation.num_documents,
        train_bytes=train.num_bytes,
        validation_bytes=validation.num_bytes,
    )


@dataclass
class _Part:
    # A standard array grows in place, so that no second copy is made to join the batches; numpy
    # reads its memory without copying.
    tokens: array[int]
    num_documents: int = field(default=0)
    num_bytes: int = field(default=0)


class PackedSamples(Dataset[torch.Tensor]):
    """Windows of a row of tokens, for ever: every epoch has each window once, in an order of its own.

    Windows are `sequence_length + 1` long and start `sequence_length` apart, so that every token is
    predicted once an epoch (but for a rest at the end, shorter than a window).

    Args:
        tokens: Token ids, (num_tokens,).
        sequence_length: Number of positions a model sees.
        seed: Seed of the orders.
        shuffle: Whether windows are permuted; otherwise every epoch is in order.

    Raises:
        UserError: If there is not one whole window.
    """

    def __init__(
        self, tokens: np.ndarray, sequence_length: int, seed: int, shuffle: bool = True
    ) -> None:
        self.tokens, self.sequence_length = tokens, sequence_length
        self.seed, self.shuffle = seed, shuffle
        self.num_windows = max(0, (len(tokens) - 1) // sequence_length)
        if self.num_windows == 0:
            raise UserError(
                "data",
                f"{len(tokens)} tokens",
                f"one sample of sequence length {sequence_length} needs {sequence_length + 1}; "
                "use more documents or a shorter sequence",
            )
        self._order: tuple[int, torch.Tensor] | None = None

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sample `index` of the run, any number from 0 up: (sequence_length + 1,), int64."""
        epoch, position = divmod(index, self.num_windows)
        window = int(self._epoch_order(epoch)[position]) if self.shuffle else position
        start = window * self.sequence_length
        sample = self.tokens[start : start + self.sequence_length + 1]
        return torch.from_numpy(sample.astype(np.int64))

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        # Samples are read in order, so that one epoch at a time is all that is worth keeping.
        if self._order is None or self._order[0] != epoch:
            digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            self._order = epoch, torch.randperm(self.num_windows, generator=generator)
        return self._order[1]


def phase_indices(start: int, count: int) -> range:
    """Indices of the `count` samples that a phase reads, if the phases before it read `start`."""
    return range(start, start + count)
