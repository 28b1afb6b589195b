"""The tokenizer interface, and loading a tokenizer by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from growlm.data.tokenization.huggingface_tokenizer import HUGGINGFACE, HuggingFaceTokenizer
from growlm.data.tokenization.own_tokenizer import OWN_TOKENIZER
from growlm.data.tokenization.tiktoken_encodings import ENCODINGS, TiktokenTokenizer
from growlm.runtime.errors import UserError

TOKENIZER_NAMES = (*ENCODINGS, HUGGINGFACE)


class Tokenizer(Protocol):
    """A tokenizer: the mapping between text and token ids.

    One that has no token for some texts may also have `find_unknown(text, ids)`, which returns the parts that were
    dropped or became an unknown token, each with its number of bytes in all its occurrences.
    """

    name: str
    """Name that `load_tokenizer` was called with."""
    library: str
    """Package that encodes; another version might give other ids. Empty if the fingerprint says all."""
    vocab_size: int
    """Number of ids, the end of text included."""
    eos_token_id: int
    """Token that follows every document."""
    eos_token_ids: tuple[int, ...]
    """`eos_token_id` and other tokens that a model may end its text with, such as the end of a turn."""
    bos_token_ids: tuple[int, ...]
    """Tokens that precede every document and prompt; none in growlm's own encodings."""

    @property
    def fingerprint(self) -> str:
        """Hash that is equal only for tokenizers with equal ids.

        One of growlm's encodings and its exported `tokenizer.json` have different fingerprints.
        """

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without begin and end of text; special tokens in it are plain text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as `encode` does, using all cores."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of any ids that a model may have sampled.

        Bytes that are not valid UTF-8, and ids outside the vocabulary (a model's may be larger than its
        tokenizer's), become U+FFFD.
        """


def load_tokenizer(
    name: str,
    path: str | Path | None = None,
    key: str = "tokenizer",
    eos_token: str | None = None,
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: `embedded` (1024 ids, trained on the embedded stories), `gpt2` (50257 ids, its two files
            downloaded unless TIKTOKEN_CACHE_DIR has them), `bytes` (257 ids), or `huggingface`.
        path: For `huggingface`: a `tokenizer.json` or its folder, a Hugging Face model or a growlm checkpoint.
        key: Config group, for error messages.
        eos_token: For `huggingface`: token that ends a text, in place of what the folder's files name.

    Raises:
        UserError: If the name is unknown, `gpt2`'s files are unavailable, or the folder has no tokenizer.
    """
    if name == OWN_TOKENIZER:
        reason = (
            "the model was trained with a tokenizer of one's own; only a run that names its class has it, or a "
            "checkpoint with a tokenizer.json, which the class may list in `files`"
        )
        raise UserError(f"{key}.name", name, reason)
    if name not in TOKENIZER_NAMES:
        raise UserError(f"{key}.name", name, f"must be one of {', '.join(TOKENIZER_NAMES)}")
    if name == HUGGINGFACE:
        if not path:
            reason = f"{key}={name} needs a folder with tokenizer.json, or that file"
            raise UserError(f"{key}.path", path, reason)
        return HuggingFaceTokenizer(Path(path).expanduser(), f"{key}.path", eos_token)
    return TiktokenTokenizer(name, ENCODINGS[name]())
