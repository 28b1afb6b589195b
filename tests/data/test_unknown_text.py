"""What a tokenizer has no token for is counted to the byte, reported, and refused above the limit."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers

from growlm.config.schema import DataConfig
from growlm.data import DataListener, TextFiles, load_tokenizer, open_run_data, tokenize_source
from growlm.data.tokenization import long_texts
from growlm.data.tokenization import parallel_tokenization as tokenizing
from growlm.data.tokenization.parallel_tokenization import find_unknown, loses_text, tokenize_chunk
from growlm.data.tokenization.token_cache import TokenCache
from growlm.inference.evaluation_text import tokenize_for_evaluation
from growlm.inference.prompts import read_prompts
from growlm.runtime.errors import UserError
from tests.data import lossy_tokenizers as kinds

TEXT = "The Cat 12 😀 sat"
LOWERCASE = normalizers.Lowercase()
WITHOUT_ACCENTS = normalizers.Sequence(
    [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
)
CHARACTERS = {"T": 1, "C": 1, "1": 1, "2": 1, "😀": 4}


def added(tokenizer, *tokens):
    tokenizer.add_tokens([AddedToken(token, special=False) for token in tokens])
    return tokenizer


def without_merges(tokenizer):
    """A vocabulary whose words are known though some of their characters are not."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "cat": 4}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=[], ignore_merges=True)
    return tokenizer


CASES = {
    "dropped": (kinds.char_bpe, TEXT, CHARACTERS),
    "unknown_token": (lambda: kinds.char_bpe(unk_token="<unk>"), TEXT, CHARACTERS),
    "fused": (lambda: kinds.char_bpe(unk_token="<unk>", fuse_unk=True), TEXT, CHARACTERS),
    "white_space": (kinds.char_bpe, "the\n\n cat\t sat", {}),
    "lowercase": (
        lambda: kinds.char_bpe(LOWERCASE),
        TEXT,
        {c: n for c, n in CHARACTERS.items() if c not in "TC"},
    ),
    "accents": (lambda: kinds.char_bpe(WITHOUT_ACCENTS), "THÉ cȧt à la cärte", {"l": 1, "r": 1}),
    "composed": (
        lambda: kinds.char_bpe(normalizers.NFC()),
        "the cate\u0301 x e\u0301 a",
        {"e\u0301": 6, "x": 1},
    ),
    "wide": (lambda: kinds.char_bpe(normalizers.NFKC()), "ｃａｔ Ｘ", {"Ｘ": 3}),
    "spaces_have_tokens": (kinds.whole_text_bpe, "the\ncat  sat", {"\n": 1}),
    "suffixes": (kinds.suffix_bpe, "the cax x", {"x": 2}),
    "some_bytes": (kinds.byte_level_bpe, "the é", {"é": 2}),
    "a_line": (kinds.byte_level_bpe, "the\ncat", {"\n": 1}),
    "bytes_normalized": (
        lambda: with_normalizer(kinds.byte_level_bpe(), normalizers.NFC()),
        "the e\u0301",
        {"é": 2},
    ),
    "pieces": (kinds.word_piece, "The Câp 12 😀 sat", {"12": 2, "😀": 4}),
    "unigram": (kinds.unigram, "the Cat 12 sat", {"C": 1, "12": 2}),
    "words": (kinds.word_level, TEXT, {"The": 3, "Cat": 3, "12": 2, "😀": 4}),
    "the_token_itself": (kinds.word_level, "the <unk> sat on <unk> dog", {"dog": 3}),
    "added": (lambda: added(kinds.char_bpe(), "😀", "2x"), "cat 😀 12x 2", {"1": 1, "2": 1}),
    "whole_words": (lambda: without_merges(kinds.char_bpe()), "cat cta", {"c": 1, "t": 1}),
}


def with_normalizer(tokenizer, normalizer):
    tokenizer.normalizer = normalizer
    return tokenizer


def loaded(tokenizer, folder):
    return load_tokenizer("huggingface", kinds.save(tokenizer, folder))


@pytest.mark.parametrize("case", CASES)
def test_what_each_kind_of_tokenizer_loses(tmp_path, case):
    make, text, expected = CASES[case]
    tokenizer = loaded(make(), tmp_path)
    for _ in range(2):  # the second time with what is remembered of the first
        assert dict(find_unknown(text, tokenizer.encode(text), tokenizer)) == expected
    found = tokenize_chunk(["a", text], tokenizer)
    assert found.num_unknown_bytes.tolist() == [0, sum(expected.values())]
    assert found.num_bytes.tolist() == [1, len(text.encode())]
    assert dict(found.unknown_parts) == expected


@pytest.mark.parametrize("make", [kinds.whole_byte_level_bpe, kinds.fallback_bpe])
def test_a_tokenizer_with_a_token_for_every_byte_is_not_looked_at(tmp_path, make):
    tokenizer = loaded(make(), tmp_path)
    assert not loses_text(tokenizer)
    assert tokenize_chunk([TEXT], tokenizer).num_unknown_bytes is None
    assert not any(loses_text(load_tokenizer(name)) for name in ("bytes", "embedded"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        make.__name__: loaded(make(), folder / make.__name__)
        for make in (kinds.whole_text_bpe, kinds.byte_level_bpe, kinds.char_bpe, kinds.word_level)
    }


ANY_TEXT = st.text(st.sampled_from("the catsmn\n😀éX\ud800 "), max_size=20) | st.text(max_size=20)


@given(text=ANY_TEXT)
def test_the_tokens_are_the_text_without_what_is_unknown(trained, text):
    tokenizer = trained["whole_text_bpe"]
    ids = tokenizer.encode(text)
    lost = find_unknown(text, ids, tokenizer)
    left = "".join(tokenizer.backend.id_to_token(token) for token in ids)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert left == "".join(character for character in text if character not in lost)
    assert sum(lost.values()) == len(text.encode()) - len(left.encode())


@given(text=ANY_TEXT)
def test_every_byte_has_a_token_or_is_unknown(trained, text):
    tokenizer = trained["byte_level_bpe"]
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = tokenizer.encode(text)
    left = sum(len(tokenizer.backend.id_to_token(token)) for token in ids)
    assert left + sum(find_unknown(text, ids, tokenizer).values()) == len(text.encode())


def test_a_long_text_is_looked_at_in_pieces(trained, monkeypatch):
    text = " ".join(["the cat sat, dog"] * 200)
    monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", 100)
    for module in (long_texts, tokenizing):
        monkeypatch.setattr(module, "LONG_TEXT_CHARACTERS", 200)
    for name, expected in {"word_level": {"dog": 600, "sat,": 800}, "char_bpe": None}.items():
        found = tokenize_chunk([text], trained[name]).unknown_parts
        assert expected is None or dict(found) == expected
        assert sum(found.values()) == sum(
            find_unknown("the cat sat, dog", trained[name].encode("sat, dog"), trained[name]).values()
        ) * 200  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"</s>": 0, "a": 1}, unk_token="none"),
        models.Unigram([("</s>", 0.0), ("a", -1.0)], None),
        models.BPE({"</s>": 0, "a": 1}, [], unk_token="none"),
    ],
)
def test_a_tokenizer_that_refuses_unknown_text_itself(tmp_path, model):
    tokenizer = loaded(kinds.tokenizers.Tokenizer(model), tmp_path)
    assert tokenizer.encode("a") == [1]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"tokenizer\.json: its tokenizer failed: .*(?i:unk)"):
            encode("b")


class Messages(DataListener):
    def __init__(self):
        self.texts = []

    def message_logged(self, text):
        self.texts.append(text)


LINES = ["the cat sat on a mat", "the man had a Map", "a hat", "😀 the cat is on a map"] * 10
LOST = [0, 1, 0, 4] * 10


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    return TextFiles(str(tmp_path / "text.txt"), "text", "line")


def open_data(source, tokenizer, tmp_path, listener=None, **changes):
    settings = DataConfig(cache=str(tmp_path / "cache"), validation_every=2, **changes)
    return open_run_data(
        settings,
        tokenizer,
        {"mine": source},
        [1],
        seed=0,
        sequence_length=4,
        validation_samples=4,
        listener=listener or Messages(),
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_above_the_limit_a_run_is_refused(source, trained, tmp_path, streaming):
    with pytest.raises(UserError) as error:
        open_data(source, trained["char_bpe"], tmp_path, streaming=streaming)
    message = str(error.value)
    assert error.value.key == "data.max_unknown_fraction"
    assert "of its bytes are unknown to the tokenizer ('😀', 'M')" in message
    assert "text.txt" in message
    listener = Messages()
    data = open_data(
        source,
        trained["char_bpe"],
        tmp_path,
        listener,
        streaming=streaming,
        max_unknown_fraction=0.5,
    )
    assert "unknown to the tokenizer ('😀', 'M')" in "\n".join(listener.texts)
    expected = [len(line.encode()) - lost for line, lost in zip(LINES, LOST, strict=True)][1::2]
    assert (
        data.validation_split.document_bytes.tolist()
        == expected[: data.validation_split.num_documents]
    )


def test_the_share_is_that_of_all_bytes(source, trained, tmp_path):
    lost, size = sum(LOST), sum(len(line.encode()) for line in LINES)
    settings = DataConfig(cache=str(tmp_path / "cache"), validation_every=2)
    at_limit = replace(settings, max_unknown_fraction=lost / size)
    corpus = tokenize_source(at_limit, trained["char_bpe"], source)
    assert (corpus.num_unknown_bytes, corpus.unknown_parts) == (lost, {"😀": 40, "M": 10})
    below = replace(settings, max_unknown_fraction=lost / size - 1e-9)
    with pytest.raises(UserError, match=f"{lost / size:.2%} of its bytes"):
        tokenize_source(below, trained["char_bpe"], source)


def test_nothing_is_tokenized_again_when_the_limit_is_raised(
    source, trained, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="unknown to the tokenizer"):
        open_data(source, trained["char_bpe"], tmp_path)
    monkeypatch.setattr(TokenCache, "_write", None)
    open_data(source, trained["char_bpe"], tmp_path, max_unknown_fraction=1.0)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_fingerprint_is_that_of_versions_which_did_not_count(
    source, trained, tmp_path, monkeypatch, streaming
):
    """So that runs which they left go on."""
    options = {"streaming": streaming, "max_unknown_fraction": 1.0}
    counted = open_data(source, trained["char_bpe"], tmp_path, **options)
    monkeypatch.setattr(trained["char_bpe"], "find_unknown", None)
    before = open_data(source, trained["char_bpe"], tmp_path, **options)
    assert counted.fingerprint == before.fingerprint
    assert (
        counted.validation_split.document_bytes.sum() < before.validation_split.document_bytes.sum()
    )
    keys = [
        json.loads(path.read_text())["depends_on"] for path in tmp_path.glob("cache/*/corpus.json")
    ]
    assert [key.get("unknown") for key in sorted(keys, key=len)] == ([] if streaming else [None, 1])


def test_a_damaged_count_is_made_again(source, trained, tmp_path):
    options = {"max_unknown_fraction": 1.0}
    expected = open_data(source, trained["char_bpe"], tmp_path, **options)
    (path,) = (tmp_path / "cache").glob("*/validation.unknown")
    path.write_bytes(path.read_bytes()[:-8])
    listener = Messages()
    again = open_data(source, trained["char_bpe"], tmp_path, listener, **options)
    assert "tokenizing again" in listener.texts[0]
    sizes = [data.validation_split.document_bytes.tolist() for data in (expected, again)]
    assert sizes[0] == sizes[1]


def test_evaluation_counts_the_bytes_that_its_tokens_stand_for(trained):
    for name in ("char_bpe", "whole_text_bpe", "byte_level_bpe"):
        data = tokenize_for_evaluation(LINES, trained[name])
        assert (data.num_bytes, data.unknown.num_unknown_bytes) == (
            sum(len(line.encode()) for line in LINES),
            sum(LOST),
        )
        assert data.num_encoded_bytes == data.num_bytes - sum(LOST)
    with pytest.raises(UserError, match="max_unknown_fraction"):
        tokenize_for_evaluation(LINES, trained["char_bpe"], max_unknown_fraction=0.01)
    with pytest.raises(UserError, match=r"nothing to evaluate on: 100\.00% of its bytes"):
        tokenize_for_evaluation(["XYZ"], trained["char_bpe"])


def test_a_truncated_document_counts_up_to_its_last_token(trained):
    tokenizer = trained["word_level"]
    data = tokenize_for_evaluation(["the dog sat on a mat"], tokenizer, max_tokens=3)
    assert (data.num_bytes, data.unknown.parts) == (len("the dog sat"), {"dog": 3})


def test_a_prompt_of_which_nothing_is_left(trained):
    tokenizer = trained["char_bpe"]
    with pytest.raises(
        UserError, match=r"'XYZ 12': nothing is left of it: .*'1', '2', 'X', 'Y', 'Z'"
    ):
        read_prompts("XYZ 12", None, tokenizer, 64)
    (prompt,) = read_prompts("The cat", None, tokenizer, 64)
    assert math.isclose(prompt.unknown.fraction, 1 / 7)
    for text in ("", "  "):  # a new text
        assert read_prompts(text, None, tokenizer, 64)[0].tokens == [tokenizer.eos_token_id]
