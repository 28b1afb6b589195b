"""Tokenizers of every kind begin and encode a text as transformers does, whatever is in their vocabulary."""

import pytest
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from growlm.data import load_tokenizer
from growlm.inference.text_stream import encode_prompt
from tests.data import lossy_tokenizers as kinds

TEXTS = ["the cat", "ACGT", "a", "The Cat 12 😀 sat", " hat\n mat ", "é", ""]
KINDS = {
    "byte_level_bpe": kinds.whole_byte_level_bpe,
    "part_of_the_bytes": kinds.byte_level_bpe,
    "char_bpe": kinds.char_bpe,
    "char_bpe_unk": lambda: kinds.char_bpe(unk_token="<unk>"),
    "byte_fallback": kinds.fallback_bpe,
    "word_piece": kinds.word_piece,
    "unigram": kinds.unigram,
    "word_level": kinds.word_level,
    "dna": kinds.dna,
}


def bert_template(tokenizer):
    tokenizer.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def roberta_template(tokenizer):
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def chain(tokenizer):
    template = kinds.add_template(tokenizer, "<s>").post_processor
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


TEMPLATES = {
    "none": lambda tokenizer: tokenizer,
    "bos": lambda tokenizer: kinds.add_template(tokenizer, "<s>"),
    "two": lambda tokenizer: kinds.add_template(tokenizer, "<s>", "</s>"),
    "chain": chain,
}


def assert_same(folder):
    ours, theirs = load_tokenizer("huggingface", folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain
        assert ours.encode_batch([text]) == [plain]
        whole = theirs.backend_tokenizer.encode(text, add_special_tokens=True).ids
        assert [*ours.bos_token_ids, *plain] == whole
        assert encode_prompt(ours, text) == (whole or [ours.eos_token_id])
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.vocab_size == 1 + max(theirs.get_vocab().values())
    return ours


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_begins_and_continues_as_with_transformers(tmp_path, kind, template):
    tokenizer = TEMPLATES[template](KINDS[kind]())
    ours = assert_same(kinds.save(tokenizer, tmp_path))
    assert len(ours.bos_token_ids) == {"none": 0, "bos": 1, "two": 2, "chain": 1}[template]
    if template == "none":  # in memory, without a file of transformers' own
        theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
        assert [ours.encode(t) for t in TEXTS] == [theirs(t)["input_ids"] for t in TEXTS]


def test_the_begin_of_text_of_a_vocabulary_without_the_letter_a(tmp_path):
    folder = kinds.save(kinds.add_template(kinds.dna(), "<s>"), tmp_path)
    tokenizer = load_tokenizer("huggingface", folder)
    assert tokenizer.bos_token_ids == (0,)
    assert encode_prompt(tokenizer, "GATTACA") == [0, 4, 2, 5, 5, 2, 3, 2]


@pytest.mark.parametrize("add_template", [bert_template, roberta_template])
def test_what_follows_a_text_in_a_template_is_not_before_it(tmp_path, add_template):
    folder = kinds.save(add_template(kinds.dna()), tmp_path)
    assert load_tokenizer("huggingface", folder).bos_token_ids == (0,)


@pytest.mark.parametrize("value", [True, False])
def test_the_template_decides_and_not_add_bos_token(tmp_path, value):
    """As in transformers, where a `tokenizer.json` has a post-processor of its own."""
    tokenizer = kinds.add_template(kinds.dna(), "<s>") if not value else kinds.dna()
    folder = kinds.save(tokenizer, tmp_path, bos_token="<s>", add_bos_token=value)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer("huggingface", folder)
    assert [*ours.bos_token_ids, *ours.encode("GAT")] == theirs("GAT")["input_ids"]


def test_a_gap_between_ids_counts_as_part_of_the_vocabulary(tmp_path):
    vocabulary = {"<s>": 0, "</s>": 1, "A": 2, "C": 9}
    tokenizer = kinds.tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    assert load_tokenizer("huggingface", kinds.save(tokenizer, tmp_path)).vocab_size == 10
