"""Tokenizers: lossless, tolerant of what models sample, and honest when files are missing."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import pytest
import requests
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import embedded_documents, load_tokenizer
from growlm.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
GPT2_FILES = ROOT.parent / "shared" / "data" / "tiktoken_cache"

embedded = load_tokenizer("embedded")
plain_bytes = load_tokenizer("bytes")


@pytest.mark.parametrize(("name", "vocab_size"), [("embedded", 1024), ("bytes", 257)])
def test_sizes(name, vocab_size):
    tokenizer = load_tokenizer(name)
    assert (tokenizer.name, tokenizer.vocab_size) == (name, vocab_size)
    assert tokenizer.eos_token_id == vocab_size - 1
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|endoftext|>"


@given(st.text())
def test_round_trip(text):
    for tokenizer in (embedded, plain_bytes):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.eos_token_id for i in ids)
    assert plain_bytes.encode(text) == list(text.encode())


@given(st.lists(st.text(), max_size=5))
def test_a_batch_is_its_texts_one_by_one(texts):
    assert embedded.encode_batch(texts) == [embedded.encode(text) for text in texts]


@given(st.lists(st.integers(min_value=0, max_value=2**40)))
def test_any_ids_decode(ids):
    for tokenizer in (embedded, plain_bytes):
        beyond = sum(i >= tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids).count("\N{REPLACEMENT CHARACTER}") >= beyond


def test_ids_beyond_the_vocabulary_become_the_replacement_character():
    fox = embedded.encode(" fox")
    assert embedded.decode([*fox, 1024, 50256, *fox]) == " fox\ufffd\ufffd fox"


def test_half_a_character_becomes_the_replacement_character():
    euro = plain_bytes.encode("€")
    assert len(euro) == 3
    assert plain_bytes.decode([ord("a"), *euro[:2]]) == "a\ufffd"


@pytest.mark.parametrize("tokenizer", [embedded, plain_bytes], ids=["embedded", "bytes"])
def test_special_tokens_in_a_text_are_text(tokenizer):
    text = "a<|endoftext|>b"
    assert tokenizer.eos_token_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [embedded, plain_bytes], ids=["embedded", "bytes"])
@pytest.mark.parametrize("character", ["a", " ", "\n", "!", "7"])
def test_a_very_long_run_of_one_character_is_encoded(tokenizer, character):
    text = character * 1_000_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_embedded_id_stands_for_bytes_of_its_own():
    tokens = [embedded.encoding.decode_single_token_bytes(i) for i in range(1023)]
    assert tokens[:256] == [bytes([i]) for i in range(256)]
    assert len(set(tokens)) == 1023
    for i in range(256, 1023):
        assert embedded.decode([i]) == tokens[i].decode()


def test_the_embedded_encoding_fits_the_stories():
    texts = list(embedded_documents(seed=12345, count=500))
    ids = embedded.encode_batch(texts)
    assert [embedded.decode(story_ids) for story_ids in ids] == texts
    assert sum(map(len, texts)) / sum(map(len, ids)) > 3.5


@pytest.mark.slow
def test_training_again_gives_the_shipped_file():
    pytest.importorskip("tokenizers", reason="scripts/train_tokenizer.py needs tokenizers")
    location = ROOT / "scripts" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", location)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ranks = script.train_ranks(embedded_documents(seed=0, count=20_000), script.NUM_RANKS)
    shipped = script.DEFAULT_OUT.read_bytes().splitlines()
    assert [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()] == shipped


def test_gpt2(monkeypatch):
    if not GPT2_FILES.is_dir():
        pytest.skip(f"GPT-2's vocabulary files are not in {GPT2_FILES}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(GPT2_FILES))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer = load_tokenizer("gpt2")
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (50257, 50256)
    assert tokenizer.encode("hello world") == [31373, 995]
    text = "Once upon a time: naïve 狐, <|endoftext|> \U0001f98a\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([50257, 50303]) == "\ufffd\ufffd"


def test_gpt2_without_its_files_says_what_to_do(monkeypatch, tmp_path):
    timeouts = []

    def unreachable(url, timeout=None):
        timeouts.append(timeout)
        raise requests.ConnectionError(f"no route to {url}")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(requests, "get", unreachable)
    with pytest.raises(UserError) as caught:
        load_tokenizer("gpt2")
    assert (caught.value.key, caught.value.value) == ("tokenizer.name", "gpt2")
    for advice in ("TIKTOKEN_CACHE_DIR", "tokenizer=embedded", "tokenizer=bytes"):
        assert advice in caught.value.reason
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert len(timeouts) == 1
    assert timeouts[0] is not None
    assert requests.get is unreachable


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="embedded, gpt2, bytes"):
        load_tokenizer("gpt3")
