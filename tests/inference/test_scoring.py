"""Every token is scored once, with the context it should have; bits per byte as the paper has them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.data import load_tokenizer
from growlm.inference.evaluation_text import tokenize_for_evaluation
from growlm.inference.scoring import bits_per_byte, iter_windows, score_tokens, sum_token_losses
from growlm.model import TransformerLM, document_positions
from growlm.runtime.errors import UserError
from tests.model.tiny_models import EXPERTS, build, logits_of, random_tokens, tiny_config


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_score_each_token_once(length, sequence_length, data):
    stride = data.draw(st.integers(1, sequence_length))
    found = list(iter_windows(length, sequence_length, stride))

    assert [i for w in found for i in range(w.first_scored, w.end)] == list(range(1, length))
    for window in found:
        assert 0 <= window.begin < window.first_scored
        assert window.end - window.begin <= sequence_length + 1
        context = window.first_scored - window.begin
        assert window is found[0] or context >= 1 + sequence_length - stride
    if length > sequence_length:
        assert all(w.end - w.begin == sequence_length + 1 for w in found)


def test_windows_without_overlap_are_those_of_training():
    found = [(w.begin, w.first_scored, w.end) for w in iter_windows(30, 8, 8)]
    assert found == [(0, 1, 9), (8, 9, 17), (16, 17, 25), (21, 25, 30)]


def by_hand(model, tokens, given, length, stride):
    """Token by token, each from the tokens before it in its window."""
    losses = {}
    for window in iter_windows(len(tokens), length, stride):
        for index in range(window.first_scored, window.end):
            context = torch.tensor([tokens[window.begin : index].tolist()])
            logits = logits_of(model, context)[0, -1]
            if given is None or not given[index]:
                losses[index] = F.cross_entropy(logits, torch.tensor(int(tokens[index]))).item()
    return losses


def test_documents_are_scored_without_those_before_them():
    model, end = build(tiny_config(**EXPERTS), std=0.3), 3
    tokens = random_tokens(model.config, 1, 60)[0].clamp(min=4).numpy()
    tokens[[0, 7, 8, 21, 40]] = end

    def score(**options):
        sizes = {"sequence_length": 12, "stride": 5, "batch_size": 3}
        return score_tokens(model, tokens, None, eos_token_id=end, **sizes, **options).nats

    expected = 0.0
    for window in iter_windows(len(tokens), 12, 5):
        for index in range(window.first_scored, window.end):
            ends = [i + 1 for i in range(window.begin, index - 1) if tokens[i] == end]
            context = torch.from_numpy(tokens[max([window.begin, *ends]) : index])
            logits = logits_of(model, context[None])[0, -1]
            expected += F.cross_entropy(logits, torch.tensor(tokens[index])).item()
    positions = partial(document_positions, eos_token_id=end)
    assert score(document_positions=positions) == pytest.approx(expected, rel=1e-12)
    assert abs(score() - expected) > 0.1


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["default", "llama"]),
    experts=st.sampled_from([{}, EXPERTS]),
    length=st.integers(2, 45),
    sequence_length=st.integers(1, 16),
    batch_size=st.integers(1, 4),
    has_given=st.booleans(),
    data=st.data(),
)
def test_sums_are_those_by_hand(
    family, experts, length, sequence_length, batch_size, has_given, data
):
    stride = data.draw(st.integers(1, sequence_length))
    model = build(tiny_config(family, **experts), std=0.3)
    tokens = random_tokens(model.config, 1, length)[0].numpy().astype(np.uint16)
    given = tokens % 5 == 1 if has_given else None
    end = 3
    told = []

    score = score_tokens(
        model,
        tokens,
        given,
        sequence_length=sequence_length,
        stride=stride,
        batch_size=batch_size,
        eos_token_id=end,
        progress=lambda done, total: told.append((done, total)),
    )

    losses = by_hand(model, tokens, given, sequence_length, stride)
    ends = [loss for index, loss in losses.items() if tokens[index] == end]
    assert score.num_tokens == len(losses)
    assert score.nats == pytest.approx(sum(losses.values()), abs=1e-9)
    assert score.num_eos_tokens == len(ends)
    assert score.eos_nats == pytest.approx(sum(ends), abs=1e-9)
    assert told[-1] == (length - 1, length - 1)


def test_summed_loss_is_over_all_tokens():
    model = build(tiny_config())
    batches = [random_tokens(model.config, 3, 9), random_tokens(model.config, 1, 9, seed=1)]
    both = torch.cat(batches)
    logits = logits_of(model, both[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), both[:, 1:].flatten())
    total, count = sum_token_losses(model, batches).tolist()
    assert count == 32
    assert total / count == pytest.approx(expected.item(), abs=1e-12)


def uniform_model(vocab_size):
    """Every token is as likely as any other: its loss is ln V to the bit that a float has."""
    model = TransformerLM(tiny_config(vocab_size=vocab_size, tie_embeddings=False)).double().eval()
    torch.nn.init.zeros_(model.head.weight)
    return model


DOCUMENTS = ["Once upon a time", "né", "木"]
UTF8 = 16 + 3 + 3


@pytest.mark.parametrize("name", ["bytes", "embedded"])
def test_bits_per_byte_worked_by_hand(name):
    """22 bytes. A uniform model over V tokens spends log2 V bits on each, ends of text among them.

    With `bytes`, V = 257: 22 bytes and 3 ends are 25 tokens, 25 · log2(257) / 22 = 9.0973 bits per byte.
    """
    tokenizer = load_tokenizer(name)
    row = tokenize_for_evaluation(DOCUMENTS, tokenizer)
    score = score_tokens(
        uniform_model(tokenizer.vocab_size),
        row.tokens,
        row.context_mask,
        sequence_length=8,
        stride=8,
        batch_size=2,
        eos_token_id=tokenizer.eos_token_id,
    )

    tokens = sum(len(tokenizer.encode(text)) + 1 for text in DOCUMENTS)
    assert row.num_bytes == UTF8
    assert (row.num_documents, score.num_tokens, score.num_eos_tokens) == (3, tokens, 3)
    assert score.loss == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-12)
    assert score.perplexity == pytest.approx(tokenizer.vocab_size, abs=1e-9)
    assert bits_per_byte(score.nats, row.num_bytes) == pytest.approx(
        tokens * math.log2(tokenizer.vocab_size) / UTF8, abs=1e-12
    )
    if name == "bytes":
        assert bits_per_byte(score.nats, row.num_bytes) == pytest.approx(9.0973, abs=1e-4)


class Prefixed:
    """The bytes with a token before every text, as Llama's tokenizer has it."""

    name, vocab_size, eos_token_id, bos_token_ids = "prefixed", 300, 256, (299,)

    def __init__(self):
        self.inner = load_tokenizer("bytes")
        self.encode_batch, self.decode = self.inner.encode_batch, self.inner.decode


def test_what_begins_a_text_is_read_and_not_scored():
    row = tokenize_for_evaluation(["ab", "c"], Prefixed())
    assert row.tokens.tolist() == [299, 97, 98, 256, 299, 99, 256]
    assert row.context_mask.tolist() == [True, False, False, False, True, False, False]
    plain = tokenize_for_evaluation(["ab", "c"], load_tokenizer("bytes"))
    assert plain.tokens.tolist() == [256, 97, 98, 256, 99, 256]
    assert plain.context_mask is None


@given(limit=st.integers(1, 40))
def test_a_limited_row_has_its_own_bytes(limit):
    row = tokenize_for_evaluation(["abc", "de", "fghij" * 3], load_tokenizer("bytes"), limit)
    wanted = row.tokens[1:]
    assert len(wanted) == min(limit, 4 + 3 + 16)
    assert row.num_bytes == int((wanted != 256).sum())


def test_no_text_is_refused():
    with pytest.raises(UserError, match="nothing to evaluate on"):
        tokenize_for_evaluation([], load_tokenizer("bytes"))


def test_documents_are_read_no_further_than_the_limit():
    def endless():
        while True:
            yield "abcd"

    assert (
        len(tokenize_for_evaluation(endless(), load_tokenizer("bytes"), max_tokens=50).tokens) == 51
    )
