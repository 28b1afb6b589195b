"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from growlm.data.tokenization.huggingface_tokenizer import HUGGINGFACE, HuggingFaceTokenizer
from growlm.data.tokenization.tiktoken_encodings import ENCODINGS, TiktokenTokenizer
from growlm.runtime.errors import UserError

TOKENIZER_NAMES = (*ENCODINGS, HUGGINGFACE)


class Tokenizer(Protocol):
    """A named encoding."""

    name: str
    """What `load_tokenizer` was asked for."""
    library: str
    """The package that encodes, another version of which may give other ids."""
    vocab_size: int
    """Ids are below it, the end of text too."""
    eos_token_id: int
    """Follows every document."""
    eos_token_ids: tuple[int, ...]
    """It, and other tokens that a model may end its text with, as an instruction-tuned one ends its turn."""
    bos_token_ids: tuple[int, ...]
    """Precede every document and every prompt; none in our own encodings."""

    @property
    def fingerprint(self) -> str:
        """Equal only for tokenizers that give equal ids; one of ours and its `tokenizer.json` differ in it."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without begin and end of text; special tokens written in it are plain text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode` gives them, on all cores."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, whatever a model has sampled.

        Bytes that are no valid UTF-8, and ids outside the vocabulary (a model's may be larger than its
        tokenizer's), become U+FFFD.
        """


def load_tokenizer(name: str, path: str | Path | None = None, key: str = "tokenizer") -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: `embedded` (1024 ids, trained on the embedded stories), `gpt2` (50257 ids, its two files
            downloaded unless TIKTOKEN_CACHE_DIR has them), `bytes` (257 ids), or `huggingface`.
        path: For `huggingface`: a folder with `tokenizer.json`, as a Hugging Face model or a checkpoint of ours.
        key: Of the config group, for messages.

    Raises:
        UserError: For another name, for `gpt2` where its files cannot be had, for a folder without a tokenizer.
    """
    if name not in TOKENIZER_NAMES:
        raise UserError(f"{key}.name", name, f"must be one of {', '.join(TOKENIZER_NAMES)}")
    if name == HUGGINGFACE:
        if not path:
            raise UserError(f"{key}.path", path, f"{key}={name} needs a folder with tokenizer.json")
        return HuggingFaceTokenizer(Path(path).expanduser(), f"{key}.path")
    return TiktokenTokenizer(name, ENCODINGS[name]())
