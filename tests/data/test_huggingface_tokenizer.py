"""A folder's tokenizer gives the ids that transformers gives, and takes any text and any ids."""

from __future__ import annotations

import json
import shutil

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from growlm.data import embedded_documents, load_tokenizer
from growlm.data.tokenization.huggingface_tokenizer import find_tokenizer_files
from growlm.runtime.errors import UserError

SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )


def llama_like():
    """Metaspace, bytes for what is unknown, <s> before every text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS + bytes_, show_progress=False
    )


def unigram():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )


MAKERS = {"byte_level": byte_level, "llama_like": llama_like, "unigram": unigram}


def write(folder, make, **special):
    backend, trainer = make()
    backend.train_from_iterator(embedded_documents(seed=0, count=300), trainer)
    if make is llama_like:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, **({"eos_token": "</s>"} | special)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: write(tmp_path_factory.mktemp(name), make, **({"bos_token": "<s>"} if name == "llama_like" else {}))
        for name, make in MAKERS.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def pairs(folders):
    return [
        (load_tokenizer("huggingface", f), AutoTokenizer.from_pretrained(f))
        for f in folders.values()
    ]


@settings(deadline=None)
@given(text=st.one_of(st.text(), st.sampled_from([*embedded_documents(seed=1, count=20)])))
def test_ids_are_those_of_transformers(pairs, text):
    for ours, theirs in pairs:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == expected
        assert ours.encode_batch([text, text + "x"])[0] == expected
        assert ours.decode(expected) == theirs.backend_tokenizer.decode(
            expected, skip_special_tokens=False
        )


def test_a_text_as_transformers_begins_it(pairs):
    for ours, theirs in pairs:
        assert [*ours.bos_token_ids, *ours.encode("Tom")] == theirs("Tom")["input_ids"]
        assert ours.eos_token_id == theirs.eos_token_id
        assert ours.vocab_size == len(theirs)
    assert [len(ours.bos_token_ids) for ours, _ in pairs] == [0, 1, 0]


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=2**40)))
def test_any_ids_of_a_folder_decode(pairs, ids):
    for tokenizer, _ in pairs:
        beyond = sum(i >= tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids).count("\N{REPLACEMENT CHARACTER}") >= beyond


@pytest.mark.parametrize("text", ["\ud800 alone", "a\udfffb"])
def test_lone_surrogates_encode_as_with_tiktoken(pairs, text):
    byte_level_tokenizer = pairs[0][0]
    ours = load_tokenizer("bytes")
    assert byte_level_tokenizer.decode(byte_level_tokenizer.encode(text)) == ours.decode(
        ours.encode(text)
    )


def test_special_tokens_of_a_folder_are_text_in_a_text(pairs):
    for tokenizer, _ in pairs[:2]:  # a unigram model has them among its own pieces
        assert tokenizer.eos_token_id not in tokenizer.encode("a</s>b")


def test_padding_and_truncation_of_the_file_are_not_ours(folders, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(folders["byte_level"] / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    text = "Once upon a time there was a fox"
    plain = load_tokenizer("huggingface", folders["byte_level"])
    padded = load_tokenizer("huggingface", tmp_path)
    assert padded.encode(text) == plain.encode(text)
    assert padded.encode_batch([text]) == [plain.encode(text)]
    assert padded.fingerprint == plain.fingerprint


def test_fingerprints_tell_tokenizers_apart(pairs):
    ours = [load_tokenizer(name) for name in ("embedded", "bytes")]
    fingerprints = [t.fingerprint for t in (*ours, *(tokenizer for tokenizer, _ in pairs))]
    assert len(set(fingerprints)) == 5
    assert load_tokenizer("bytes").fingerprint == ours[1].fingerprint


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("eos", [{"content": "</s>", "lstrip": False}, None])
def test_end_of_text_as_older_files_say_it(folders, tmp_path, eos, name):
    (tmp_path / "tokenizer.json").write_bytes((folders["unigram"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [2, 1]}))
    tokenizer = load_tokenizer("huggingface", tmp_path)
    assert tokenizer.eos_token_id == 2
    assert tokenizer.eos_token_ids == (2, 1)


def test_end_of_text_of_a_folder_that_only_the_map_of_special_tokens_names(folders, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folders["unigram"] / "tokenizer.json").read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer("huggingface", tmp_path)
    assert (tokenizer.eos_token_ids, tokenizer.eos_token_to_record) == ((2,), None)
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')  # comes first, as ever
    tokenizer = load_tokenizer("huggingface", tmp_path)
    assert (tokenizer.eos_token_ids, tokenizer.eos_token_to_record) == ((1,), "<s>")


@pytest.mark.parametrize(
    "content",
    ["{}", '{"eos_token_id": true}', '{"eos_token_id": 2.0}', '{"eos_token_id": -1}'],
)
def test_a_file_that_names_no_token_is_passed_over(folders, tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes((folders["unigram"] / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match="names an end-of-text token"):
        load_tokenizer("huggingface", tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    end = load_tokenizer("huggingface", tmp_path).eos_token_id
    assert (end, type(end)) == (2, int)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[]", "5"])
def test_a_file_that_cannot_be_read_is_refused(folders, tmp_path, name, content):
    (tmp_path / "tokenizer.json").write_bytes((folders["unigram"] / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: (is|its content)"):
        load_tokenizer("huggingface", tmp_path)


def test_files_that_make_a_tokenizer(folders, tmp_path):
    names = {path.name for path in find_tokenizer_files(folders["byte_level"])}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert find_tokenizer_files(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "has no tokenizer.json"),
        ("{", "cannot be read"),
        ("no end", "names an end-of-text token"),
    ],
)
def test_a_folder_without_a_whole_tokenizer(folders, tmp_path, content, wanted):
    if content is not None:
        whole = (folders["byte_level"] / "tokenizer.json").read_text()
        (tmp_path / "tokenizer.json").write_text(whole if content == "no end" else content)
    with pytest.raises(UserError, match=wanted) as error:
        load_tokenizer("huggingface", tmp_path)
    assert error.value.key == "tokenizer.path"


def test_no_path_at_all():
    with pytest.raises(UserError, match="needs a folder"):
        load_tokenizer("huggingface")


def with_parts(folders, tmp_path, **parts):
    """A folder whose tokenizer.json has another normalizer or decoder."""
    folder = tmp_path / "changed"
    shutil.copytree(folders["byte_level"], folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | parts))
    return folder


def replacements(kind, pattern, times):
    step = {"type": "Replace", "pattern": pattern, "content": "a" * 100}
    return {"type": "Sequence", kind: [step] * times}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", replacements("normalizers", {"String": "a"}, 6)),
        ("decoder", replacements("decoders", {"Regex": "."}, 6)),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [replacements("normalizers", {"String": "a"}, 1)] * 4,
            },
        ),
    ],
)
def test_replacements_that_multiply_are_refused(folders, tmp_path, part, value):
    folder = with_parts(folders, tmp_path, **{part: value})
    with pytest.raises(UserError, match=rf"tokenizer\.json: its {part} makes up to .* characters"):
        load_tokenizer("huggingface", str(folder))


def test_a_panic_of_the_library_is_an_error_about_the_file(folders, tmp_path, capfd):
    step = {"type": "Replace", "pattern": {"Regex": "(a+)+(a+)+(a+)+$"}, "content": "x"}
    tokenizer = load_tokenizer("huggingface", str(with_parts(folders, tmp_path, normalizer=step)))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"tokenizer\.json: its tokenizer failed: .*Regex"):
            encode("a" * 40 + "!")
    capfd.readouterr()
