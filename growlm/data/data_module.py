"""The data of one phase, as Lightning asks for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growlm.data.packing import PackedSamples, RankBatches, Samples, ValidationSamples
from growlm.data.streaming import StreamedSamples


class PackedDataModule(LightningDataModule):
    """A phase's stretch of the run's samples, and a validation set that is the same for all phases.

    Loaders work in the training process: cutting a sample out of mapped files takes a fraction of a millisecond
    (`scripts/bench_data.py` measures it), and a stream has a thread of its own.

    Args:
        train: Samples to train on.
        validation: Held-out samples.
        first_sample: The run's sample that this phase starts with.
        num_batches: Number of training batches.
        batch_size: Samples in each of them, over all processes.
        validation_sequences: Held-out samples, the same whatever the batch size; fewer where the split does
            not have as many windows. A window never comes twice.
        rank: Of this process.
        size: Number of processes; a multiple of it is `batch_size`.
    """

    def __init__(
        self,
        train: PackedSamples | StreamedSamples,
        validation: ValidationSamples,
        *,
        first_sample: int,
        num_batches: int,
        batch_size: int,
        validation_sequences: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.train_batches = RankBatches(first_sample, num_batches, batch_size, rank, world_size)
        windows = min(validation_sequences, validation.num_windows)
        # All make the same number of passes; where the windows cannot be shared evenly, all look at all.
        is_shared = windows % world_size == 0
        own = range(windows)[rank::world_size] if is_shared else range(windows)
        part = batch_size // world_size
        self.validation_batches = [own[i : i + part] for i in range(0, len(own), part)]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """This process's share of the phase's batches, in order, (share, sequence_length + 1), int64."""
        return _make_loader(self.train, self.train_batches)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Its share of the validation batches, each (at most a training share, sequence_length + 1), int64."""
        return _make_loader(self.validation, self.validation_batches)


class _BatchDataset(Dataset[Tensor]):
    """Whole batches as the loader's items, so that it need not put them together out of samples."""

    def __init__(self, samples: Samples, indices: Sequence[range]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Tensor:
        return self.samples.__getitems__(self.indices[number])


def _make_loader(samples: Samples, indices: Sequence[range]) -> DataLoader[Tensor]:
    # A loader without a generator of its own draws from the global one each time it is iterated.
    return DataLoader(_BatchDataset(samples, indices), batch_size=None, generator=torch.Generator())
