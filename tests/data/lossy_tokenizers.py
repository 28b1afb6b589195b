"""Tokenizers of all kinds, trained on a few words, most of which have no token for other text."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TRAINING_TEXT = ["the cat sat on the mat", "a man had a cap and a map", "the hat is on the man"] * 3
SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = pre_tokenizers.WhitespaceSplit


def _train(model, trainer, pre_tokenizer=None, normalizer=None, decoder=None):
    tokenizer = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if decoder is not None:
        tokenizer.decoder = decoder
    options = {"special_tokens": SPECIALS, "show_progress": False, "vocab_size": 60}
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer(**options))
    return tokenizer


def char_bpe(normalizer=None, **options):
    """BPE of characters, white space between words removed; what is not in the vocabulary is dropped."""
    return _train(models.BPE(**options), trainers.BpeTrainer, WORDS(), normalizer)


def whole_text_bpe():
    return _train(models.BPE(), trainers.BpeTrainer)


def suffix_bpe():
    model = models.BPE(end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = WORDS()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIALS, end_of_word_suffix="</w>", vocab_size=60, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def byte_level_bpe(alphabet=()):
    """Byte-level BPE; without the whole alphabet, bytes that the training text lacks are dropped."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIALS, initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def whole_byte_level_bpe():
    return byte_level_bpe(pre_tokenizers.ByteLevel.alphabet())


def fallback_bpe():
    """Metaspace, and bytes for unknown characters, as Llama 2 has."""
    vocabulary = {
        token: index
        for index, token in enumerate([*SPECIALS, *(f"<0x{i:02X}>" for i in range(256)), "▁", "a"])
    }
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def word_piece():
    return _train(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        decoders.WordPiece(),
    )


def unigram():
    def trainer(**options):
        return trainers.UnigramTrainer(unk_token="<unk>", **options)

    return _train(models.Unigram(), trainer, pre_tokenizers.Metaspace(), None, decoders.Metaspace())


def word_level():
    return _train(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, WORDS())


def dna():
    """The four bases, each a token."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *"ACGT"])}
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))


def add_template(tokenizer, *before):
    specials = [(token, tokenizer.token_to_id(token)) for token in before]
    tokenizer.post_processor = processors.TemplateProcessing(
        " ".join([*before, "$A"]), special_tokens=specials
    )
    return tokenizer


def save(tokenizer, folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder
