"""The loaders of a phase: consecutive samples, and the same validation batches every time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import PackedDataModule, PackedSamples, RankBatches, ValidationSamples
from growlm.data.token_stream import ShuffledDocuments

ROW = ShuffledDocuments(np.arange(161, dtype=np.uint16), np.array([50, 90, 161]), 2, seed=0)


def make_module(**changes) -> PackedDataModule:
    settings = {
        "train": PackedSamples(ROW, 4),
        "validation": ValidationSamples(np.arange(43, dtype=np.uint16), 4),
        "first_sample": 0,
        "num_batches": 3,
        "batch_size": 5,
        "validation_sequences": 8,
    }
    return PackedDataModule(**(settings | changes))


def test_batches_are_consecutive_samples_from_the_first_one():
    module = make_module(first_sample=33)
    batches = list(module.train_dataloader())
    assert (
        [batch.shape for batch in batches]
        == [(5, 5)] * 3
        == [(5, 5)] * len(module.train_dataloader())
    )
    expected = torch.stack([module.train[i] for i in range(33, 48)])  # crosses into epoch 1
    assert torch.equal(torch.cat(batches), expected)
    assert batches[0].dtype == torch.int64


@given(first=st.integers(0, 90), count=st.integers(1, 9), order=st.randoms(use_true_random=False))
def test_a_batch_is_its_samples_in_any_order(first, count, order):
    samples, neighbours = PackedSamples(ROW, 4), range(first, first + count)
    shuffled = order.sample(neighbours, count)
    for indices in (neighbours, shuffled, [first, *neighbours], neighbours[::2]):
        expected = torch.stack([samples[i] for i in indices])
        assert torch.equal(samples.__getitems__(indices), expected)


@given(first=st.integers(0, 90), reads=st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 9))))
def test_what_was_read_ahead_serves_any_batch(first, reads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growlm.data.packing.READ_AHEAD_TOKENS", 50)
        samples = PackedSamples(ROW, 4)
        for stride, count in reads:
            first = max(0, first + stride)
            batch = samples.__getitems__(range(first, first + count))
            expected = [samples[i] for i in range(first, first + count)]
            assert torch.equal(batch, torch.stack(expected))
            batch.zero_()  # whoever has it may change it


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7, 12])
def test_batches_are_read_several_at_a_time_and_no_token_in_vain(samples, monkeypatch):
    monkeypatch.setattr("growlm.data.packing.READ_AHEAD_TOKENS", 32)
    data, reads = PackedSamples(ROW, 4), []
    monkeypatch.setattr(
        data, "stream", SimpleNamespace(read=lambda at, n: reads.append(n) or ROW.read(at, n))
    )
    for batch in range(24):
        data.__getitems__(range(batch * samples, (batch + 1) * samples))
    together = max(1, 32 // (4 * samples))
    assert len(reads) == 1 + -(-23 // together)
    assert sum(reads) <= (24 + together) * 4 * samples + len(reads)


def test_processes_that_share_batches_read_their_own_parts(monkeypatch):
    data, reads = PackedSamples(ROW, 4), []
    monkeypatch.setattr(
        data, "stream", SimpleNamespace(read=lambda at, n: reads.append(n) or ROW.read(at, n))
    )
    for part in RankBatches(0, num_batches=5, batch_size=8, rank=1, world_size=4):
        data.__getitems__(part)
    assert reads == [2 * 4 + 1] * 5


def test_phases_of_any_batch_sizes_read_on_where_the_last_one_stopped():
    def read(*phases: tuple[int, int]) -> torch.Tensor:
        batches, first = [], 0
        for num_batches, batch_size in phases:
            module = make_module(first_sample=first, num_batches=num_batches, batch_size=batch_size)
            batches += list(module.train_dataloader())
            first += num_batches * batch_size
        return torch.cat(batches)

    expected = read((48, 1))
    assert len(expected) == 48
    assert torch.equal(read((6, 8)), expected)
    assert torch.equal(read((4, 8), (2, 5), (6, 1)), expected)


def test_validation_batches_are_the_first_windows_in_order_every_time():
    module = make_module()
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert torch.cat(first)[:, 0].tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert len(first) == len(module.val_dataloader()) == 2
    assert torch.equal(torch.cat(first), torch.cat(second))
    later = make_module(first_sample=99, num_batches=1, batch_size=1)
    assert torch.equal(torch.cat(list(later.val_dataloader())), torch.cat(first))
    assert [len(batch) for batch in make_module(batch_size=3).val_dataloader()] == [3, 3, 2]


def test_a_small_validation_split_is_read_once():
    batches = list(make_module(validation_sequences=100, batch_size=4).val_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches)[:, 0].tolist() == list(range(0, 40, 4))


def test_loading_leaves_the_global_generator_alone():
    module = make_module()
    before = torch.get_rng_state()
    list(module.train_dataloader())
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
