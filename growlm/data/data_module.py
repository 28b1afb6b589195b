"""The Lightning data module of one phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from growlm.data.own_data import FixedSamples, OwnSamples
from growlm.data.packing import PackedSamples, RankBatches, Samples, ValidationSamples
from growlm.data.streaming import StreamedSamples


class PackedDataModule(LightningDataModule):
    """A phase's range of the run's samples, and a validation set that is the same for all phases.

    Loaders work in the training process: cutting a sample out of mapped files takes a fraction of a millisecond
    (`scripts/bench_data.py` measures it), and a stream has a thread of its own.

    Args:
        train: Training samples.
        validation: Validation samples.
        first_sample: Index in the run of the phase's first sample.
        num_batches: Number of training batches.
        batch_size: Samples per batch, over all processes.
        validation_sequences: Number of validation samples, whatever the batch size; fewer if the split has fewer
            windows. No window occurs twice.
        rank: Rank of this process.
        world_size: Number of processes; it divides `batch_size`.
        evaluation_sets: Samples of further sets by name, of which as many are read as of `validation`.
        first_batch: Number of training batches that were read before a resume. The loader begins after them, and
            still has the length of the whole phase.
    """

    def __init__(
        self,
        train: PackedSamples | StreamedSamples | OwnSamples,
        validation: ValidationSamples | FixedSamples,
        *,
        first_sample: int,
        num_batches: int,
        batch_size: int,
        validation_sequences: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        evaluation_sets: Mapping[str, ValidationSamples] | None = None,
    ) -> None:
        super().__init__()
        self.first_batch = first_batch
        self.train, self.validation = train, validation
        self.evaluation_sets = dict(evaluation_sets or {})
        self.train_batches = RankBatches(first_sample, num_batches, batch_size, rank, world_size)

        def list_batches(samples: ValidationSamples | FixedSamples) -> list[range]:
            windows = min(validation_sequences, samples.num_windows)
            # All processes must run the same number of batches: if the windows do not divide evenly, each reads
            # all.
            is_shared = windows % world_size == 0
            rank_windows = range(windows)[rank::world_size] if is_shared else range(windows)
            share = batch_size // world_size
            return [rank_windows[i : i + share] for i in range(0, len(rank_windows), share)]

        self.validation_batches = list_batches(validation)
        self.evaluation_batches = {
            name: list_batches(samples) for name, samples in self.evaluation_sets.items()
        }

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return a loader of this process's share of the phase's batches, in order.

        Each is (share, sequence_length + 1), int64.
        """
        return _make_loader(self.train, self.train_batches, self.first_batch)

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        """Return a loader of this process's share of the validation batches; with evaluation sets, a list.

        The loaders of the sets follow, in their order. Each batch is (at most a training share,
        sequence_length + 1), int64.
        """
        validation = _make_loader(self.validation, self.validation_batches)
        sets = [
            _make_loader(samples, self.evaluation_batches[name])
            for name, samples in self.evaluation_sets.items()
        ]
        return [validation, *sets] if sets else validation


class _BatchDataset(Dataset[Tensor]):
    """Whole batches as the loader's items, so that it need not assemble them from samples."""

    def __init__(self, samples: Samples, indices: Sequence[range]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.samples.__getitems__(self.indices[index])


class _RemainingBatches(Sampler[int]):
    """The indices of a phase's batches from the first that is left, under the length of the whole phase.

    Lightning takes the length for that of the epoch, and counts the batches before a resume as read.
    """

    def __init__(self, num_batches: int, first: int) -> None:
        self.num_batches, self.first = num_batches, first

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.num_batches))


def _make_loader(
    samples: Samples, indices: Sequence[range], first_batch: int = 0
) -> DataLoader[Tensor]:
    # Without its own generator, a loader draws from the global one each time it is iterated.
    return DataLoader(
        _BatchDataset(samples, indices),
        batch_size=None,
        sampler=_RemainingBatches(len(indices), first_batch),
        generator=torch.Generator(),
    )
