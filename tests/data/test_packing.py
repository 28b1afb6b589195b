"""Tokenizing by document, and samples that depend on nothing but seed and index."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import PackedSamples, load_tokenizer, packing, phase_indices, tokenize_documents
from growlm.errors import UserError

tokenizer = load_tokenizer("bytes")
END = tokenizer.end_of_text


def split_documents(tokens: np.ndarray) -> list[str]:
    """The texts between the ends of text."""
    texts, current = [], []
    for token in tokens.tolist():
        if token == END:
            texts.append(tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    assert not current
    return texts


def window_numbers(samples: PackedSamples, indices: range) -> list[int]:
    """Which window each sample is, where the tokens are 0, 1, 2, ..."""
    return [int(samples[i][0]) // samples.sequence_length for i in indices]


@given(st.lists(st.text(max_size=6), min_size=1, max_size=40), st.integers(2, 7))
def test_documents_are_held_out_whole_and_in_order(documents, validation_every):
    corpus = tokenize_documents(documents, tokenizer, validation_every, None)
    held_out = documents[validation_every - 1 :: validation_every]
    kept = [text for i, text in enumerate(documents) if i % validation_every < validation_every - 1]
    assert split_documents(corpus.validation) == held_out
    assert split_documents(corpus.train) == kept
    assert (corpus.train_documents, corpus.validation_documents) == (len(kept), len(held_out))
    assert corpus.train_bytes == len("".join(kept).encode())
    assert corpus.validation_bytes == len("".join(held_out).encode())


def test_no_held_out_document_is_trained_on():
    documents = [f"document {i}" for i in range(2500)]
    corpus = tokenize_documents(documents, tokenizer, 10, None)
    train, validation = map(split_documents, (corpus.train, corpus.validation))
    assert len(validation) == 250
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(documents)


def test_the_size_of_batches_changes_nothing_but_the_progress(monkeypatch):
    documents = [f"document {i}" for i in range(50)]
    whole = tokenize_documents(iter(documents), tokenizer, 4, None)
    monkeypatch.setattr(packing, "DOCUMENTS_PER_BATCH", 7)
    calls: list[int] = []
    batched = tokenize_documents(iter(documents), tokenizer, 4, calls.append)
    assert np.array_equal(whole.train, batched.train)
    assert np.array_equal(whole.validation, batched.validation)
    assert calls == [7, 14, 21, 28, 35, 42, 49, 50]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_tokens_take_two_bytes_where_the_vocabulary_allows(vocab_size, dtype):
    large = replace(tokenizer, vocab_size=vocab_size, end_of_text=vocab_size - 1)
    corpus = tokenize_documents(["ab", "c"], large, 2, None)
    assert corpus.train.dtype == corpus.validation.dtype == dtype
    assert corpus.train.tolist() == [97, 98, vocab_size - 1]
    assert corpus.validation.tolist() == [99, vocab_size - 1]


def test_holding_everything_out_is_refused():
    with pytest.raises(UserError, match=r"data\.validation_every=1"):
        tokenize_documents(["a"], tokenizer, 1, None)


@given(
    sequence_length=st.integers(1, 9),
    num_windows=st.integers(1, 30),
    rest=st.integers(0, 8),
    seed=st.integers(),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_epoch_has_every_window_once(
    sequence_length, num_windows, rest, seed, epoch, shuffle
):
    tokens = np.arange(num_windows * sequence_length + 1 + rest % sequence_length, dtype=np.uint16)
    samples = PackedSamples(tokens, sequence_length, seed, shuffle)
    indices = range(epoch * num_windows, (epoch + 1) * num_windows)
    numbers = window_numbers(samples, indices)
    assert sorted(numbers) == list(range(num_windows))
    assert shuffle or numbers == list(range(num_windows))
    for i, number in zip(indices, numbers, strict=True):
        start = number * sequence_length
        assert samples[i].dtype == torch.int64
        assert samples[i].tolist() == list(range(start, start + sequence_length + 1))


def test_a_sample_depends_on_seed_and_index_only():
    tokens = np.arange(401, dtype=np.uint16)
    in_order = PackedSamples(tokens, 4, seed=3)
    expected = [in_order[i].tolist() for i in range(300)]
    jumping = PackedSamples(tokens, 4, seed=3)
    for i in random.Random(0).sample(range(300), 300):
        assert jumping[i].tolist() == expected[i]


def test_epochs_and_seeds_have_orders_of_their_own():
    tokens = np.arange(401, dtype=np.uint16)
    samples, other = PackedSamples(tokens, 4, seed=3), PackedSamples(tokens, 4, seed=4)
    first = window_numbers(samples, range(100))
    assert first != window_numbers(samples, range(100, 200))
    assert first != window_numbers(other, range(100))
    assert first != list(range(100))


def test_the_order_is_pinned():
    # A run that is resumed after an upgrade must read what it would have read.
    samples = PackedSamples(np.arange(11, dtype=np.uint16), 1, seed=3)
    assert window_numbers(samples, range(20)) == [
        *[6, 5, 4, 1, 0, 7, 8, 2, 3, 9],
        *[0, 7, 3, 1, 5, 4, 9, 8, 6, 2],
    ]


def test_global_random_states_are_left_alone():
    samples = PackedSamples(np.arange(401, dtype=np.uint16), 4, seed=3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for i in range(0, 500, 50):
        samples[i]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_large_ids_survive():
    tokens = np.array([65535, 70000, 2**31], dtype=np.uint32)
    assert PackedSamples(tokens, 2, seed=0)[5].tolist() == [65535, 70000, 2**31]


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_less_than_one_window_is_refused(num_tokens):
    tokens = np.zeros(num_tokens, dtype=np.uint16)
    with pytest.raises(UserError, match=f"data={num_tokens} tokens: .*sequence length 8 needs 9"):
        PackedSamples(tokens, 8, seed=0)


def test_exactly_one_window_is_enough():
    samples = PackedSamples(np.arange(9, dtype=np.uint16), 8, seed=0)
    assert samples[0].tolist() == samples[99].tolist() == list(range(9))


def test_phases_read_on():
    assert [*phase_indices(0, 5), *phase_indices(5, 3)] == list(range(8))
