"""Very long texts: the tokens of the text as a whole, in a small multiple of its memory."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.data import embedded_documents, load_tokenizer
from growlm.data.tokenization import long_texts
from growlm.data.tokenization import parallel_tokenization as tokenizing
from growlm.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from growlm.data.tokenization.long_texts import (
    MAX_CUT_SEARCH,
    PIECE_CHARACTERS,
    encode_long_text,
    split_long_text,
)
from growlm.data.tokenization.parallel_tokenization import tokenize_chunk
from growlm.data.tokenization.tiktoken_encodings import TiktokenTokenizer, make_byte_pair_encoding
from tests.data.test_huggingface_tokenizer import MAKERS, write

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
embedded = load_tokenizer("embedded")
TOKENIZERS = {
    "embedded": embedded,
    "bytes": load_tokenizer("bytes"),
    "gpt2": TiktokenTokenizer(
        "gpt2",
        make_byte_pair_encoding("like GPT-2", GPT2_PATTERN, embedded.encoding._mergeable_ranks),
    ),
}


@pytest.fixture
def short_pieces(monkeypatch):
    def shorten(piece, farthest):
        monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", piece)
        monkeypatch.setattr(long_texts, "MAX_CUT_SEARCH", farthest)
        for module in (long_texts, tokenizing):
            monkeypatch.setattr(module, "LONG_TEXT_CHARACTERS", 2 * piece)

    return shorten


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300)
@given(
    text=st.text(st.sampled_from("ab s't'.,!?。一é½²7\n\t \u0301\u2028\u00a0_-\x1c"), max_size=60)
    | st.text(max_size=60),
    piece=st.integers(1, 4),
)
def test_pieces_have_the_tokens_of_the_whole(name, text, piece):
    tokenizer = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "PIECE_CHARACTERS", piece)
        patch.setattr(long_texts, "LONG_TEXT_CHARACTERS", 2 * piece)
        found = list(split_long_text(text))
        ids = [i for part in encode_long_text(text, tokenizer) for i in part]
    assert "".join(found) == text
    assert ids == tokenizer.encode(text)


@pytest.fixture(scope="module")
def stories():
    return " ".join(embedded_documents(seed=5, count=150))


@pytest.fixture(scope="module", params=MAKERS)
def huggingface(request, tmp_path_factory):
    special = {"bos_token": "<s>"} if request.param == "llama_like" else {}
    folder = write(tmp_path_factory.mktemp(request.param), MAKERS[request.param], **special)
    return load_tokenizer("huggingface", folder)


def test_pieces_of_a_huggingface_tokenizer_agree(huggingface, stories, short_pieces, monkeypatch):
    short_pieces(10_000, 10_000)
    whole = huggingface.encode(stories)
    monkeypatch.setattr(HuggingFaceTokenizer, "encode", None)  # nothing is encoded as a whole
    parts = list(encode_long_text(stories, huggingface))
    assert len(parts) > 5
    assert [i for part in parts for i in part] == whole


def test_a_tokenizer_whose_pieces_do_not_agree_encodes_the_whole(
    huggingface, stories, short_pieces, monkeypatch
):
    short_pieces(10_000, 10_000)
    whole = huggingface.encode(stories)
    really = HuggingFaceTokenizer.encode_with_spans

    def elsewhere(self, text):
        ids, spans = really(self, text)
        return [i + len(text) % 2 for i in ids], spans  # depends on all of the text

    monkeypatch.setattr(HuggingFaceTokenizer, "encode_with_spans", elsewhere)
    assert [i for part in encode_long_text(stories, huggingface) for i in part] == whole


@pytest.mark.parametrize("name", [*TOKENIZERS, "huggingface"])
def test_long_and_short_documents_in_one_chunk(name, huggingface, stories, short_pieces):
    tokenizer = huggingface if name == "huggingface" else TOKENIZERS[name]
    documents = ["short one", stories, "short two", stories[100:], ""]
    expected = [
        [*tokenizer.bos_token_ids, *tokenizer.encode(text), tokenizer.eos_token_id]
        for text in documents
    ]
    short_pieces(10_000, 10_000)
    found = tokenize_chunk(documents, tokenizer)
    assert found.tokens.tolist() == [i for ids in expected for i in ids]
    assert found.lengths.tolist() == [len(ids) for ids in expected]


def test_a_stretch_without_a_place_is_cut_all_the_same():
    text = "ACGT" * (MAX_CUT_SEARCH // 2)
    found = list(split_long_text(text))
    assert "".join(found) == text
    assert max(map(len, found)) <= PIECE_CHARACTERS + MAX_CUT_SEARCH


def test_few_long_documents_are_in_memory_at_once(monkeypatch):
    monkeypatch.setattr(tokenizing, "MAX_QUEUED_CHARACTERS", 3 * PIECE_CHARACTERS)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    read = []

    def documents():
        for number in range(12):
            read.append(number)
            yield "a" * PIECE_CHARACTERS

    for done, _ in enumerate(tokenizing.tokenize_documents(documents(), TOKENIZERS["bytes"])):
        assert len(read) - done <= 5


MEMORY = """
import resource, sys
from pathlib import Path
from growlm.config.schema import DataConfig
from growlm.data import TextFiles, load_tokenizer, prepare_data

folder = Path(sys.argv[1])

def tokenize(name):
    source = TextFiles(str(folder / name), "text", "line")
    prepare_data(DataConfig(cache=str(folder / "cache"), validation_every=2), load_tokenizer("bytes"), source)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = tokenize("short.txt")
print(tokenize("long.txt") - before)
"""


def test_a_long_line_takes_a_small_multiple_of_its_memory(tmp_path):
    """39 times its size, before it was cut."""
    line = "a line of many words, and no end of it; " * 200_000
    (tmp_path / "short.txt").write_text("one\ntwo\n" * 1000)
    (tmp_path / "long.txt").write_text(f"{line}\nshort\n")
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 9 * len(line)
