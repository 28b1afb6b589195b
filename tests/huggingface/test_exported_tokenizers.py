"""Tokenizers go along: ours as `tokenizer.json` that encodes the same, theirs byte for byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from growlm.checkpoint import load_model, save_model
from growlm.data import embedded_documents, load_tokenizer
from growlm.data.tokenization.tiktoken_encodings import END_OF_TEXT, make_byte_pair_encoding
from growlm.huggingface import to_growlm, to_huggingface
from growlm.huggingface.byte_level_tokenizer import build_byte_level_tokenizer, derive_merges
from growlm.runtime.errors import UserError
from tests.data.test_huggingface_tokenizer import llama_like, write
from tests.model.tiny_models import build, tiny_config

FAMILIES = {
    "llama": tiny_config("llama", vocab_size=1030),
    "mistral": tiny_config("llama", vocab_size=1030, d_model=18),
    "mixtral": tiny_config("llama", vocab_size=1030, num_experts=4),
    "gpt_neox": tiny_config(vocab_size=1030),
    "growlm": tiny_config(vocab_size=1030, num_experts=4),
}
ODD = [
    "",
    " ",
    "\n\n \n",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|>",
    "naïve café — “quoted” … 北京 🦊👩‍👩‍👧 \u200d\ufeff\u0301",
    "\t tabs\r\nand\x0bother\x85white\u2028space\u3000 ",
    "I'll won't 'tis rock'n'roll 3.14159 1,000,000 ½ ⅷ ٣",
    "x" * 3000,
    " " * 3000,
    "\x00\x1f\x7f\u0378\U000e0001\U0010ffff",
]


def exported(folder, config, name):
    save_model(build(config), folder / "ours", {"tokenizer": name})
    to_huggingface(folder / "ours", folder / "hf")
    return AutoTokenizer.from_pretrained(folder / "hf", trust_remote_code=True)


@pytest.fixture(scope="module", params=["embedded", "bytes"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return load_tokenizer(request.param), exported(folder, FAMILIES["llama"], request.param)


def assert_same(ours, theirs, text):
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text


def test_stories(both):
    stories = list(embedded_documents(seed=11, count=500))
    for text in stories:
        assert_same(*both, text)
    assert both[1](stories)["input_ids"] == both[0].encode_batch(stories)


@pytest.mark.parametrize("text", ODD)
def test_odd_texts(both, text):
    assert_same(*both, text)


@given(text=st.text())
def test_any_text(both, text):
    assert_same(*both, text)


@given(ids=st.lists(st.integers(0, 255)))
def test_any_bytes_decode(both, ids):
    """Bytes that are no text become replacement characters, at the same places."""
    encoding = both[0].encoding
    tokens = [encoding.encode_single_token(bytes([byte])) for byte in ids]
    assert both[1].decode(tokens) == both[0].decode(tokens)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_whatever_the_model_is(tmp_path, config):
    theirs = exported(tmp_path, config, "embedded")
    ours = load_tokenizer("embedded")
    for text in ODD:
        assert_same(ours, theirs, text)
    ends = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ends == (ours.eos_token_id,) * 3
    generation = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (generation.eos_token_id, generation.pad_token_id) == ends[1:]
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == (ours.eos_token_id, None)
    assert set(theirs("a")) == {"input_ids", "attention_mask"}


def test_ours_comes_back_as_a_hugging_face_tokenizer(tmp_path):
    exported(tmp_path, FAMILIES["llama"], "embedded")
    to_growlm(tmp_path / "hf", tmp_path / "back")
    _, record = load_model(tmp_path / "back")
    assert record["tokenizer"] == "huggingface"
    again, ours = load_tokenizer("huggingface", tmp_path / "back"), load_tokenizer("embedded")
    assert (again.vocab_size, again.eos_token_id) == (ours.vocab_size, ours.eos_token_id)
    for text in ODD:
        assert again.encode(text) == ours.encode(text)


def test_theirs_is_carried_both_ways(tmp_path):
    config = tiny_config("llama", vocab_size=700)
    save_model(build(config), tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "plain")
    write(tmp_path / "plain", llama_like, bos_token="<s>")
    (tmp_path / "plain" / "merges.txt").write_bytes(b"#version\r\n")
    (tmp_path / "plain" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    names = {"tokenizer.json", "tokenizer_config.json", "merges.txt", "generation_config.json"}

    to_growlm(tmp_path / "plain", tmp_path / "back")
    to_huggingface(tmp_path / "back", tmp_path / "again")

    _, record = load_model(tmp_path / "back")
    assert record["tokenizer"] == "huggingface"
    for name in names:
        for folder in ("back", "again"):
            carried = (tmp_path / folder / name).read_bytes()
            assert carried == (tmp_path / "plain" / name).read_bytes()


def test_files_go_along_without_a_tokenizer_that_ours_reads(tmp_path):
    save_model(build(tiny_config("llama")), tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    files = {"tokenizer.model": b"\x0a\x0b", "generation_config.json": b'{"temperature": 0.5}'}
    for name, content in files.items():
        (tmp_path / "hf" / name).write_bytes(content)
    done = to_growlm(tmp_path / "hf", tmp_path / "back")
    assert "none that growlm can read" in done.tokenizer
    assert "tokenizer" not in load_model(tmp_path / "back")[1]
    to_huggingface(tmp_path / "back", tmp_path / "again")
    for name, content in files.items():
        assert (tmp_path / "again" / name).read_bytes() == content


def test_special_token_ids_without_a_generation_config(tmp_path):
    origin = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0}
    save_model(build(tiny_config("llama")), tmp_path / "ours", {"huggingface": origin})
    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    generation = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (generation.bos_token_id, generation.eos_token_id) == (1, [2, 7])
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == ([2, 7], 0)


@pytest.mark.parametrize(("name", "size"), [("embedded", 1024), ("bytes", 257)])
def test_a_model_with_too_few_rows(tmp_path, name, size):
    save_model(build(tiny_config()), tmp_path / "ours", {"tokenizer": name})
    with pytest.raises(
        UserError, match=f"the tokenizer has {size} ids, but the model's vocabulary has 29"
    ):
        to_huggingface(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_their_model_with_too_few_rows(tmp_path):
    save_model(build(tiny_config("llama", vocab_size=1024)), tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    build_byte_level_tokenizer(load_tokenizer("embedded").encoding, END_OF_TEXT).save(
        str(tmp_path / "hf" / "tokenizer.json")
    )
    to_growlm(tmp_path / "hf", tmp_path / "fits")
    save_model(build(tiny_config("llama", vocab_size=1023)), tmp_path / "less", {})
    to_huggingface(tmp_path / "less", tmp_path / "less_hf")
    tokenizer = (tmp_path / "hf" / "tokenizer.json").read_bytes()
    (tmp_path / "less_hf" / "tokenizer.json").write_bytes(tokenizer)
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer has 1024 ids"):
        to_growlm(tmp_path / "less_hf", tmp_path / "back")
    (tmp_path / "less_hf" / "tokenizer.json").write_bytes(tokenizer[:1000])
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        to_growlm(tmp_path / "less_hf", tmp_path / "back")


def test_a_tokenizer_nobody_knows(tmp_path):
    save_model(build(tiny_config()), tmp_path / "ours", {"tokenizer": "klingon"})
    with pytest.raises(UserError, match="names an unknown tokenizer, 'klingon'"):
        to_huggingface(tmp_path / "ours", tmp_path / "hf")


def test_ranks_that_no_pairs_make():
    letters = {bytes([i]): i for i in range(256)}
    with pytest.raises(ValueError, match="not the concatenation of two tokens"):
        derive_merges(letters | {b"abc": 256})
    assert derive_merges(letters | {b"ab": 256, b"abc": 257}) == [("a", "b"), ("ab", "c")]


@given(st.data())
def test_any_trained_vocabulary(data):
    """Trained as vocabularies are, but with a pair drawn each time where training takes the most frequent one."""
    ranks = {bytes([i]): i for i in range(256)}
    corpus = data.draw(st.text("ab ", min_size=2, max_size=30))
    encoding = make_byte_pair_encoding("drawn", r"[^\n]+|\n", ranks)
    for _ in range(data.draw(st.integers(1, 12))):
        tokens = encoding.decode_tokens_bytes(encoding.encode_ordinary(corpus))
        if len(tokens) == 1:
            break
        place = data.draw(st.integers(0, len(tokens) - 2))
        ranks[tokens[place] + tokens[place + 1]] = len(ranks)
        encoding = make_byte_pair_encoding("drawn", r"[^\n]+|\n", ranks)
    theirs = build_byte_level_tokenizer(encoding, END_OF_TEXT)
    for text in (corpus, data.draw(st.text("ab ", max_size=40))):
        assert theirs.encode(text, add_special_tokens=False).ids == encoding.encode_ordinary(text)
