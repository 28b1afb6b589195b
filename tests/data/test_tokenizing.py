"""Documents in chunks and threads: the ids are those of one document after another."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import embedded_documents, load_tokenizer
from growlm.data.tokenization import parallel_tokenization as tokenizing
from growlm.data.tokenization.parallel_tokenization import (
    concatenate_documents,
    token_dtype,
    tokenize_documents,
)
from tests.data.test_huggingface_tokenizer import llama_like, write


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Hugging Face tokenizer that begins a text with <s>."""
    folder = write(tmp_path_factory.mktemp("llama"), llama_like, bos_token="<s>")
    return load_tokenizer("huggingface", folder)


def one_by_one(documents, tokenizer):
    return [
        [*tokenizer.bos_token_ids, *tokenizer.encode(text), tokenizer.eos_token_id]
        for text in documents
    ]


def split(found):
    return [part.tolist() for part in np.split(found.tokens, np.cumsum(found.lengths)[:-1])]


@given(
    documents=st.lists(st.text(max_size=12), min_size=1, max_size=40),
    name=st.sampled_from(["embedded", "bytes", "llama"]),
    size=st.integers(1, 9),
)
def test_chunks_of_any_size_give_the_same(documents, name, size, llama):
    tokenizer = llama if name == "llama" else load_tokenizer(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "MAX_CHUNK_DOCUMENTS", size)
        patch.setattr(tokenizing, "MAX_CHUNK_CHARACTERS", 5 * size)
        found = concatenate_documents(tokenize_documents(documents, tokenizer), tokenizer)
    assert split(found) == one_by_one(documents, tokenizer)
    assert found.num_bytes.tolist() == [len(text.encode()) for text in documents]
    assert found.tokens.dtype == token_dtype(tokenizer)


def test_real_text(llama):
    documents = list(embedded_documents(3, 700))
    for tokenizer in (llama, load_tokenizer("embedded")):
        found = concatenate_documents(tokenize_documents(documents, tokenizer), tokenizer)
        assert split(found) == one_by_one(documents, tokenizer)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(vocab_size, dtype):
    class Large:
        bos_token_ids = ()
        eos_token_id = vocab_size - 1

        def encode_batch(self, texts):
            return [[vocab_size - 2] for _ in texts]

    Large.vocab_size = vocab_size
    found = concatenate_documents(tokenize_documents(["ab", "c"], Large()), Large())
    assert found.tokens.dtype == dtype
    assert found.tokens.tolist() == [vocab_size - 2, vocab_size - 1] * 2


def test_nothing_is_nothing():
    tokenizer = load_tokenizer("bytes")
    assert len(concatenate_documents(tokenize_documents([], tokenizer), tokenizer).tokens) == 0


def test_several_threads_encode_and_few_documents_wait(monkeypatch):
    monkeypatch.setattr(tokenizing.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(tokenizing, "MAX_CHUNK_DOCUMENTS", 10)
    together = threading.Barrier(3, timeout=20)  # opens only if three encode at the same time
    read, first = [], []

    class Slow:
        bos_token_ids, eos_token_id, vocab_size = (), 1, 2

        def encode_batch(self, texts):
            if len(first) < 3:
                first.append(len(read))
                together.wait()
            return [[0] for _ in texts]

    def documents():
        for i in range(1000):
            read.append(i)
            yield "x"

    batches = tokenize_documents(documents(), Slow())
    next(batches)
    assert len(first) == 3
    assert len(read) <= 10 * (2 * 3 + 2)
    assert sum(len(batch.lengths) for batch in batches) == 990


def test_an_error_in_a_thread_is_raised_here():
    class Broken:
        bos_token_ids, eos_token_id, vocab_size = (), 1, 2

        def encode_batch(self, texts):
            raise RuntimeError("no such merge")

    with pytest.raises(RuntimeError, match="no such merge"):
        list(tokenize_documents(["a"], Broken()))
