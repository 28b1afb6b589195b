"""Read training and validation samples from a data module or an iterable of the user's own.

Batches are tokens, (any number, sequence_length + 1), int64; growlm regroups their rows into its own batches.
They are read once from the beginning to the end of a run, and again from the beginning if they end before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from growlm.data.packing import Samples
from growlm.runtime.errors import RunError, UserError

KEY = "data._target_"


@dataclass(frozen=True)
class OwnDataRequest:
    """What a run asks of the user's own data.

    Attributes:
        target: Name of the class or function.
        arguments: Arguments that it is called with, plain JSON.
        make: Function that calls it.
        sequence_length: Number of positions a model sees.
        vocab_size: Number of token ids.
        seed: Seed of the run.
        validation_samples: Largest number of validation samples that will be read; 0 where validation reads other
            data than the user's.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    target: str
    arguments: dict[str, Any]
    make: Callable[[], Any]
    sequence_length: int
    vocab_size: int
    seed: int
    validation_samples: int
    rank: int = 0
    world_size: int = 1


class FixedSamples(Samples):
    """Validation samples in memory.

    Args:
        rows: Tokens, (samples, sequence_length + 1), int64.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.num_windows = rows, len(rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return sample `index` (below `num_windows`): (sequence_length + 1,), int64."""
        if not 0 <= index < self.num_windows:
            raise IndexError(index)
        return self.rows[index]


class OwnSamples(Samples):
    """Training samples in the order in which the user's data gives them.

    Several processes each read data of their own, which must be different parts: sample i of a process is the i-th
    row that its data gives.

    Args:
        request: What the run asks for.
        source: Data module with `train_dataloader`, or an iterable.
        num_held_out: Rows at the beginning of the data that are used for validation.
    """

    def __init__(self, request: OwnDataRequest, source: Any, num_held_out: int) -> None:
        self.request, self.source, self.num_held_out = request, source, num_held_out
        self.loader: Any = None
        self.epoch = self.position = 0
        self._batches: Iterator[Tensor] | None = None
        self._skip_at_start = num_held_out
        self._rows = torch.empty((0, request.sequence_length + 1), dtype=torch.int64)
        self._last = self._rows

    @property
    def has_state(self) -> bool:
        """Whether the data can save where it is."""
        return self._is_saved(self._find_loader()) or bool(self._module_state())

    def __getitem__(self, index: int) -> Tensor:
        """Return sample `index` of this process, which must be the next one or lie behind it."""
        return self.__getitems__(range(index, index + 1))[0]

    def __getitems__(self, indices: Any) -> Tensor:
        """Return a batch of the next samples, (samples, sequence_length + 1).

        Args:
            indices: Consecutive indices in the run, this process's share of a batch.

        Raises:
            RunError: If the data gives something else than batches of tokens, or ends before it has given any.
        """
        count = len(indices)
        first = (indices[0] - self.request.rank * count) // self.request.world_size
        if first == self.position - len(
            self._last
        ):  # a phase without steps reads a batch that it does not use
            self._rows, self.position = torch.cat([self._last, self._rows]), first
        if first < self.position:
            raise RunError(f"{KEY}={self.request.target}: sample {first} was read already")
        self._skip(first - self.position)
        self._last = self._take(count)
        return self._last

    def state_dict(self, index: int) -> None:
        """Return None: what the data saves is not JSON, see `get_state`."""

    def load_state_dict(self, state: None) -> None:
        """Do nothing, see `restore_state`."""

    def get_state(self) -> dict[str, Any]:
        """Return where the data is, tensors and plain values; empty if it cannot save that."""
        if self.request.world_size > 1 or not self.has_state:
            return {}
        loader = self._find_loader()
        return {
            "position": self.position,
            "epoch": self.epoch,
            "rows": self._rows.clone(),
            "loader": loader.state_dict() if self._is_saved(loader) else None,
            "module": self._module_state(),
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called; without a state, rows are read and skipped."""
        if not state:
            return
        if state["module"]:
            self.source.load_state_dict(state["module"])
        self.loader = None
        if state["loader"] is not None:
            self._find_loader().load_state_dict(state["loader"])
        self.position, self.epoch, self._rows = state["position"], state["epoch"], state["rows"]
        self._last, self._batches, self._skip_at_start = self._rows[:0], None, 0

    def _skip(self, count: int) -> None:
        """Read rows and drop them."""
        while count:
            if not len(self._rows):
                self._rows = self._next_batch()
            dropped = min(count, len(self._rows))
            self._rows = self._rows[dropped:]
            self.position, count = self.position + dropped, count - dropped

    def _take(self, count: int) -> Tensor:
        """Return the next rows, and advance."""
        while len(self._rows) < count:
            self._rows = torch.cat([self._rows, self._next_batch()])
        rows, self._rows = self._rows[:count], self._rows[count:]
        self.position += count
        return rows

    def _next_batch(self) -> Tensor:
        if self._batches is None:
            self._start(self._skip_at_start)
        assert self._batches is not None
        batch = next(self._batches, None)
        if batch is None:
            self.epoch += 1
            if self.source is iter_or_none(
                self.source
            ):  # a generator, which does not begin again by itself
                self.source = self.request.make()
            self.loader = None
            self._start(self.num_held_out)
            batch = next(self._batches, None)
            if batch is None:
                raise RunError(f"{KEY}={self.request.target}: gives no batches")
        return batch

    def _start(self, skip: int) -> None:
        """Begin to read the loader, in an order that is a function of the run's seed and the epoch.

        Args:
            skip: Rows to leave out.
        """
        loader = self._find_loader()
        set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed((self.request.seed << 20) + self.epoch)
            batches = read_batches(loader, self.request, skip)
            first = next(batches, None)  # a sampler draws its order when it is first asked
        self._batches = iter(()) if first is None else _chain(first, batches)

    def _find_loader(self) -> Any:
        if self.loader is None:
            is_module = hasattr(self.source, "train_dataloader")
            self.loader = self.source.train_dataloader() if is_module else self.source
        return self.loader

    def _module_state(self) -> Any:
        is_module = hasattr(self.source, "train_dataloader") and hasattr(self.source, "state_dict")
        return self.source.state_dict() if is_module else None

    @staticmethod
    def _is_saved(loader: Any) -> bool:
        return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def iter_or_none(source: Any) -> Any:
    """Return what iterating a source gives; None for a data module."""
    return iter(source) if hasattr(source, "__iter__") else None


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def read_batches(loader: Any, request: OwnDataRequest, skip: int = 0) -> Iterator[Tensor]:
    """Yield the batches of a loader without its first `skip` rows, each checked.

    Raises:
        RunError: If a batch is not one of tokens.
    """
    width = request.sequence_length + 1
    for batch in loader:
        tokens = torch.as_tensor(batch) if hasattr(batch, "__array__") else batch
        if (
            not isinstance(tokens, Tensor)
            or tokens.dtype != torch.int64
            or tokens.shape[1:] != (width,)
        ):
            got = (
                f"{tokens.dtype} {tuple(tokens.shape)}"
                if isinstance(tokens, Tensor)
                else f"a {type(batch).__name__}"
            )
            reason = f"a batch must be int64 tokens of shape (any, sequence_length + 1 = {width}); got {got}"
            raise RunError(f"{KEY}={request.target}: {reason}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < request.vocab_size:
            ids = f"{int(tokens.min())} to {int(tokens.max())}"
            reason = (
                f"token ids must be below {request.vocab_size}, the model's vocabulary; got {ids}"
            )
            raise RunError(f"{KEY}={request.target}: {reason}")
        dropped, skip = min(skip, len(tokens)), max(0, skip - len(tokens))
        if dropped < len(tokens):
            yield tokens[dropped:].cpu()


def open_own_samples(request: OwnDataRequest) -> tuple[OwnSamples, FixedSamples, str, list[str]]:
    """Open the user's data: training samples, validation samples, a fingerprint, and notes for the user.

    Raises:
        UserError: If the data cannot be used.
    """
    source = request.make()
    is_module = hasattr(source, "train_dataloader")
    if is_module:
        for hook, arguments in (("prepare_data", ()), ("setup", ("fit",))):
            getattr(source, hook, lambda *_: None)(*arguments)
    elif not hasattr(source, "__iter__"):
        reason = "is neither a LightningDataModule nor an iterable of batches"
        raise UserError(KEY, request.target, reason)
    num_held_out = 0
    if not request.validation_samples:
        return _open_without_validation(request, source)
    held_out = None if not is_module else _validation_loader(source)
    if held_out is None:
        if request.world_size > 1:
            reason = "needs a data module with val_dataloader, the same on all of several processes"
            raise UserError(KEY, request.target, reason)
        held_out, num_held_out = (
            source.train_dataloader() if is_module else source,
            request.validation_samples,
        )
    try:
        rows = _read_rows(held_out, request)
    except RunError as error:
        raise UserError(KEY, request.target, str(error).partition(": ")[2]) from error
    if num_held_out and source is iter_or_none(source):
        source = request.make()
    train = OwnSamples(request, source, num_held_out)
    content = json.dumps([request.target, request.arguments, rows.tolist()])
    notes = [
        _describe_resumption(train),
        "bits per byte are not reported: the bytes of the text are not known",
    ]
    if num_held_out:
        notes.append(f"its first {len(rows)} sequences are held out for validation")
    named = [f"{KEY}={request.target}: {note}" for note in notes]
    return train, FixedSamples(rows), hashlib.sha256(content.encode()).hexdigest(), named


def _open_without_validation(
    request: OwnDataRequest, source: Any
) -> tuple[OwnSamples, FixedSamples, str, list[str]]:
    train = OwnSamples(request, source, 0)
    content = json.dumps([request.target, request.arguments])
    note = f"{KEY}={request.target}: {_describe_resumption(train)}"
    nothing = FixedSamples(torch.empty((0, request.sequence_length + 1), dtype=torch.int64))
    return train, nothing, hashlib.sha256(content.encode()).hexdigest(), [note]


def _validation_loader(module: Any) -> Any:
    """Return the module's validation data; None if it has none."""
    try:
        loader = module.val_dataloader()
    except Exception as error:
        if (
            type(error).__name__ != "MisconfigurationException"
        ):  # Lightning's, for a module without it
            raise
        return None
    return loader


def _read_rows(loader: Any, request: OwnDataRequest) -> Tensor:
    rows: list[Tensor] = []
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(request.seed << 20)
        for batch in read_batches(loader, request):
            rows.append(batch)
            if sum(map(len, rows)) >= request.validation_samples:
                break
    if not rows:
        raise RunError(f"{KEY}={request.target}: gives no batches for validation")
    return torch.cat(rows)[: request.validation_samples]


def _describe_resumption(train: OwnSamples) -> str:
    if train.has_state and train.request.world_size == 1:
        return "a resumed run restores what its state_dict saves, and is as exact as that"
    return (
        "a resumed run reads it from the beginning and skips what was trained on: it is exact only if the same "
        "batches come in the same order"
    )
