"""Samples are a pure function of seed and number, and every epoch has every document once."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import PackedSamples, RankBatches
from growlm.data.packing import ValidationSamples
from growlm.data.shuffling import compute_block_counts, mixture_order, window_order
from growlm.data.token_stream import MixedDocuments, ShuffledDocuments
from growlm.runtime.errors import UserError
from tests.data.made_corpora import mixed, shuffled, texts_of, tokenizer, trained_on

corpora = st.lists(st.text("abc é", max_size=7), min_size=2, max_size=40)


def plain_row(documents, window, seed, epochs):
    """The row as the words of docs/data.md have it, made in one go."""
    row = []
    for epoch in range(epochs):
        for number, first in enumerate(range(0, len(documents), window)):
            part = documents[first : first + window]
            for index in window_order(seed, epoch, number, len(part)):
                row += [*tokenizer.encode(part[index]), tokenizer.eos_token_id]
    return row


@given(
    documents=corpora,
    window=st.integers(1, 45),
    every=st.integers(2, 7),
    length=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    draw=st.randoms(use_true_random=False),
)
def test_any_sample_in_any_order_is_its_place_in_the_row(
    documents, window, every, length, seed, draw
):
    epochs = 3
    expected = plain_row(trained_on(documents, every), window, seed, epochs)
    samples = PackedSamples(shuffled(documents, window, seed, every), length)
    numbers = list(range((len(expected) - 1) // length))
    draw.shuffle(numbers)
    for i in numbers:
        assert samples[i].dtype == torch.int64
        assert samples[i].tolist() == expected[i * length : (i + 1) * length + 1]


@given(documents=corpora, window=st.integers(1, 45), seed=st.integers(0, 9))
def test_every_epoch_has_every_document_once(documents, window, seed):
    row = shuffled(documents, window, seed, 1000)
    for epoch in (0, 1, 5):
        tokens = row.read(epoch * row.num_tokens, row.num_tokens)
        *found, rest = texts_of(tokens)
        assert rest == ""
        assert Counter(found) == Counter(documents)
        assert window > 1 or found == documents
        for first in range(0, len(documents), window):
            assert Counter(found[first : first + window]) == Counter(
                documents[first : first + window]
            )


@given(
    parts=st.lists(corpora, min_size=1, max_size=3),
    window=st.integers(1, 45),
    seed=st.integers(0, 9),
    length=st.integers(1, 30),
    first=st.integers(0, 20_000),
)
def test_a_mixture_is_its_sources_rows_one_document_at_a_time(parts, window, seed, length, first):
    counts = [3 + index for index in range(len(parts))]
    rows = [shuffled(documents, window, seed, 5) for documents in parts]
    samples = PackedSamples(mixed(parts, counts, window, seed, 5), length)
    numbers, expected, block = [0] * len(parts), [], 0
    while len(expected) < 40 * length + 1:
        for source in mixture_order(seed, block, counts):
            expected += rows[source].document(numbers[source]).tolist()
            numbers[source] += 1
        block += 1
    for i in random.Random(first).sample(range(40), 40):
        assert samples[i].tolist() == expected[i * length : (i + 1) * length + 1]
    far = PackedSamples(mixed(parts, counts, window, seed, 5), length)
    assert torch.equal(samples[first], far[first])
    assert torch.equal(samples[first][-1:], far[first + 1][:1])


@pytest.mark.parametrize("window", [7, 100, 1000])
def test_reading_on_permutes_no_window_twice(window, monkeypatch):
    made = Counter()

    def noted(*arguments):
        made[arguments] += 1
        return window_order(*arguments)

    rows = [
        ShuffledDocuments(
            np.zeros(3 * size, np.uint16), np.arange(3, 3 * size + 3, 3), window, seed
        )
        for seed, size in enumerate((3000, 1200, 900))
    ]
    samples = PackedSamples(MixedDocuments(rows, [700, 200, 100], 0), 16)
    monkeypatch.setattr("growlm.data.token_stream.window_order", noted)
    for i in range(1000):
        samples[i]
    assert len(made) > 3
    assert set(made.values()) == {1}
    made.clear()
    samples[5000]
    assert len(made) > 3
    made.clear()
    for i in range(5001, 5100):
        samples[i]
    assert sum(made.values()) <= 3 * (1000 // window + 2)  # of one block at most


def test_a_mixture_of_one_is_that_one():
    documents = [f"document {i}" for i in range(50)]
    alone = PackedSamples(shuffled(documents, 8, 3, 5), 16)
    (count,) = compute_block_counts({"it": 0.3})
    mixture = PackedSamples(mixed([documents], [count], 8, 3, 5), 16)
    for i in (0, 1, 7, 900, 123_456):
        assert torch.equal(alone[i], mixture[i])


def test_epochs_and_seeds_have_orders_of_their_own():
    documents = [f"{i}" for i in range(100)]

    def order(seed, epoch):
        row = shuffled(documents, 100, seed, 1000)
        return texts_of(row.read(epoch * row.num_tokens, row.num_tokens))[:-1]

    assert len({tuple(o) for o in (order(3, 0), order(3, 1), order(4, 0), documents)}) == 4


def test_the_order_is_pinned():
    # A run that is resumed after an upgrade must read what it would have read.
    assert window_order(3, 0, 0, 10).tolist() == [1, 9, 4, 0, 3, 6, 5, 2, 7, 8]
    assert window_order(3, 1, 7, 10).tolist() == [0, 9, 5, 1, 3, 8, 7, 6, 2, 4]
    assert mixture_order(3, 2, [4, 6]).tolist() == [1, 1, 0, 1, 0, 1, 0, 1, 1, 0]


def test_global_random_states_are_left_alone():
    samples = PackedSamples(mixed([["a", "b"] * 20, ["c"] * 9], [1, 2], 8, 3, 5), 4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for i in range(0, 500, 50):
        samples[i]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_large_ids_survive():
    tokens = np.array([65535, 70000, 2**31], dtype=np.uint32)
    row = ShuffledDocuments(tokens, np.array([3]), 1, seed=0)
    assert PackedSamples(row, 2)[0].tolist() == [65535, 70000, 2**31]


def test_a_far_sample_of_a_large_corpus_comes_at_once():
    ends = np.cumsum(np.full(3_000_000, 5))
    tokens = np.zeros(int(ends[-1]), np.uint16)
    rows = [ShuffledDocuments(tokens, ends, 10_000, seed=0) for _ in range(2)]
    samples = PackedSamples(MixedDocuments(rows, [7000, 3000], 0), 256)
    assert len(samples[10**10]) == 257


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_less_than_one_held_out_window_is_refused(num_tokens):
    tokens = np.zeros(num_tokens, dtype=np.uint16)
    with pytest.raises(UserError, match=rf"data={num_tokens} held-out .*sequence length 8 needs 9"):
        ValidationSamples(tokens, 8)


def test_held_out_windows_are_in_order_and_end():
    samples = ValidationSamples(np.arange(20, dtype=np.uint16), 6)
    assert samples.num_windows == 3
    assert [s.tolist()[0] for s in samples] == [0, 6, 12]
    assert samples[2].tolist() == list(range(12, 19))


def test_phases_read_on():
    batches = [*RankBatches(0, 1, 5), *RankBatches(5, 3, 1)]
    assert [index for batch in batches for index in batch] == list(range(8))


@given(
    start=st.integers(0, 50),
    num_batches=st.integers(1, 5),
    part=st.integers(1, 4),
    size=st.integers(1, 5),
)
def test_processes_share_every_batch_in_order(start, num_batches, part, size):
    batch_size = part * size
    shares = [list(RankBatches(start, num_batches, batch_size, r, size)) for r in range(size)]
    for batch in range(num_batches):
        together = [i for share in shares for i in share[batch]]
        first = start + batch * batch_size
        assert together == list(range(first, first + batch_size))
