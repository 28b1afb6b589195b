"""A tokenizer out of a Hugging Face folder: `tokenizer.json`, read by the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growlm.runtime.errors import UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import MAX_TOKENIZER_BYTES, lexists, read_json, read_text

if TYPE_CHECKING:
    import tokenizers

HUGGINGFACE = "huggingface"
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.json",
)
"""What a folder says about its text. We read the first two and, for the end of text, `generation_config.json` or
the model's `config.json`; all are handed on, so that other tools find a checkpoint's tokenizer as it came."""


def find_tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that make its tokenizer; none if it has no `tokenizer.json`."""
    if not lexists(folder / TOKENIZER_JSON):
        return []
    return [path for name in TOKENIZER_FILES if lexists(path := folder / name)]


def read_tokenizer_json(path: Path, key: str) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        UserError: If it is none that the `tokenizers` library can read.
    """
    import tokenizers

    text = read_text(path, key, path.parent, MAX_TOKENIZER_BYTES)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except (
        BaseException
    ) as error:  # plain Exception for a damaged file; what Rust calls a panic is not even one
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(key, path, f"cannot be read: {summarize_error(error)}") from None


class HuggingFaceTokenizer:
    """A `Tokenizer` from a folder's `tokenizer.json`.

    Special tokens that are written in a text are plain text, as with our own tokenizers (but for a unigram model,
    which has them among its own pieces).

    Args:
        folder: Of the file.
        key: What the user calls the folder, for messages.

    Raises:
        UserError: If there is no such file, it cannot be read, or nothing says which token ends a text.
    """

    name = HUGGINGFACE
    library = "tokenizers"

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        path = folder / TOKENIZER_JSON
        if not lexists(path):
            allowed = f"has no {TOKENIZER_JSON} (transformers' save_pretrained of a fast tokenizer writes one)"
            raise UserError(key, folder, allowed)
        self.backend = read_tokenizer_json(path, key)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.bos_token_ids = self._find_prefix()
        self.backend.encode_special_tokens = True
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        self._known_ids = frozenset(vocabulary.values())
        self.eos_token_ids = _read_eos_token_ids(folder, vocabulary, key)
        if not self.eos_token_ids:
            files = "none of tokenizer_config.json, generation_config.json, config.json"
            allowed = f"{files} names an end of text (eos_token) that the vocabulary has"
            raise UserError(key, folder, allowed)
        self.eos_token_id = self.eos_token_ids[0]

    @cached_property
    def fingerprint(self) -> str:
        """See `Tokenizer`."""
        digest = hashlib.sha256(self.backend.to_str().encode())
        digest.update(json.dumps([self.bos_token_ids, self.eos_token_id]).encode())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self.backend.encode(_replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        texts = [_replace_surrogates(text) for text in texts]
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text as `encode` does, and where the characters of each begin and end."""
        encoding = self.backend.encode(_replace_surrogates(text), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        pieces = []
        for known, run in groupby(map(int, ids), key=self._known_ids.__contains__):
            tokens = list(run)
            if known:
                pieces.append(self.backend.decode(tokens, skip_special_tokens=False))
            else:
                pieces.append("\N{REPLACEMENT CHARACTER}" * len(tokens))
        return "".join(pieces)

    def _find_prefix(self) -> tuple[int, ...]:
        """What the tokenizer's own post-processing puts before every text, as Llama's <s>."""
        with_specials = self.backend.encode("a").ids
        plain = self.backend.encode("a", add_special_tokens=False).ids
        for start in range(len(with_specials) - len(plain) + 1):
            if with_specials[start : start + len(plain)] == plain:
                return tuple(with_specials[:start])
        return ()


def _read_eos_token_ids(folder: Path, vocabulary: dict[str, int], key: str) -> tuple[int, ...]:
    """The token that `tokenizer_config.json` names, then those that the model may end with, each once."""
    ends = []
    token = _read_setting(folder / "tokenizer_config.json", "eos_token", key)
    if isinstance(token, dict):  # written by older versions, with flags beside it
        token = token.get("content")
    if isinstance(token, str) and token in vocabulary:
        ends.append(vocabulary[token])
    known = set(vocabulary.values())
    for name in ("generation_config.json", "config.json"):
        ids = _read_setting(folder / name, "eos_token_id", key)
        found = ids if isinstance(ids, list) else [ids]
        if found := [each for each in found if type(each) is int and each in known]:
            ends += found
            break
    return tuple(dict.fromkeys(ends))


def _read_setting(path: Path, name: str, key: str) -> Any:
    if not lexists(path):
        return None
    return read_json(path, key, path.parent, dict[str, Any]).get(name)


def _replace_surrogates(text: str) -> str:
    """Lone surrogates, which no UTF-8 has, as tiktoken takes them: replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
