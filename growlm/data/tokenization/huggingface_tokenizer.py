"""A tokenizer from a Hugging Face folder: its `tokenizer.json`, read by the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
MAX_EXPANSION = 1000
"""Characters that a normalizer or decoder may make of one; published tokenizers make one or two."""
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
"""Files of a Hugging Face folder that describe its tokenizer.

growlm reads the first two and, for the end of text, `generation_config.json` or the model's `config.json`. All
are copied into checkpoints, so that other tools find the tokenizer unchanged."""


def find_tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer files of a folder; none if it has no `tokenizer.json`."""
    if not lexists(folder / TOKENIZER_JSON):
        return []
    return [path for name in TOKENIZER_FILES if lexists(path := folder / name)]


def read_tokenizer_json(path: Path, key: str) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        UserError: If the `tokenizers` library cannot read it.
    """
    import tokenizers

    text = read_text(path, key, path.parent, MAX_TOKENIZER_BYTES)
    with _translate_panics(path, key):
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise UserError(key, path, f"cannot be read: {summarize_error(error)}") from None
    for part in ("normalizer", "decoder"):
        _check_expansion(getattr(backend, part), part, path, key)
    return backend


@contextmanager
def _translate_panics(path: Path, key: str) -> Iterator[None]:
    """Turn a panic of the Rust library into an error about the file: of a regular expression, for example.

    Raises:
        UserError: For a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(key, path, f"its tokenizer failed: {summarize_error(error)}") from None


def _check_expansion(part: Any, name: str, path: Path, key: str) -> None:
    """Check that a chain of replacements does not turn a short text into a huge one.

    Raises:
        UserError: If one character may become more than `MAX_EXPANSION`.
    """
    if part is None:
        return
    expansion, steps = 1, [json.loads(part.__getstate__())]
    while steps:
        step = steps.pop()
        if step.get("type") == "Replace":
            expansion *= max(1, len(step.get("content", "")))
        steps += [*step.get("normalizers", ()), *step.get("decoders", ())]
    if expansion > MAX_EXPANSION:
        reason = f"its {name} makes up to {expansion:,} characters of one (the limit is {MAX_EXPANSION:,})"
        raise UserError(key, path, reason)


class HuggingFaceTokenizer:
    """A `Tokenizer` from a folder's `tokenizer.json`.

    Special tokens written in a text are plain text, as with growlm's own tokenizers (except for a unigram
    model, which has them in its own vocabulary).

    Args:
        folder: Folder with the file.
        key: Setting that names the folder, for error messages.

    Raises:
        UserError: If the file is missing or unreadable, or no end-of-text token is defined.
    """

    name = HUGGINGFACE
    library = "tokenizers"

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        path = folder / TOKENIZER_JSON
        if not lexists(path):
            reason = f"has no {TOKENIZER_JSON} (transformers' save_pretrained of a fast tokenizer writes one)"
            raise UserError(key, folder, reason)
        self.backend = read_tokenizer_json(path, key)
        self.backend.no_padding()
        self.backend.no_truncation()
        with self._translate_panics():
            self.bos_token_ids = self._find_prefix()
        self.backend.encode_special_tokens = True
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        self._known_ids = frozenset(vocabulary.values())
        self.eos_token_ids = _read_eos_token_ids(folder, vocabulary, key)
        if not self.eos_token_ids:
            files = "none of tokenizer_config.json, generation_config.json, config.json"
            reason = f"{files} names an end-of-text token (eos_token) that is in the vocabulary"
            raise UserError(key, folder, reason)
        self.eos_token_id = self.eos_token_ids[0]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that ids depend on; see `Tokenizer`."""
        digest = hashlib.sha256(self.backend.to_str().encode())
        digest.update(json.dumps([self.bos_token_ids, self.eos_token_id]).encode())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode one text; see `Tokenizer`."""
        with self._translate_panics():
            return self.backend.encode(_replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts; see `Tokenizer`."""
        texts = [_replace_surrogates(text) for text in texts]
        with self._translate_panics():
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a text's ids as `encode` does, and the range of characters of each."""
        with self._translate_panics():
            encoding = self.backend.encode(_replace_surrogates(text), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; see `Tokenizer`."""
        texts = []
        for known, run in groupby(map(int, ids), key=self._known_ids.__contains__):
            tokens = list(run)
            if known:
                with self._translate_panics():
                    texts.append(self.backend.decode(tokens, skip_special_tokens=False))
            else:
                texts.append("\N{REPLACEMENT CHARACTER}" * len(tokens))
        return "".join(texts)

    def _translate_panics(self) -> AbstractContextManager[None]:
        return _translate_panics(self.folder / TOKENIZER_JSON, self._key)

    def _find_prefix(self) -> tuple[int, ...]:
        """Return the tokens that the tokenizer's post-processing puts before every text, such as Llama's <s>."""
        with_specials = self.backend.encode("a").ids
        plain = self.backend.encode("a", add_special_tokens=False).ids
        for start in range(len(with_specials) - len(plain) + 1):
            if with_specials[start : start + len(plain)] == plain:
                return tuple(with_specials[:start])
        return ()


def _read_eos_token_ids(folder: Path, vocabulary: dict[str, int], key: str) -> tuple[int, ...]:
    """Return the end-of-text token of `tokenizer_config.json`, then the others that the model may end with."""
    eos_ids = []
    token = _read_setting(folder / "tokenizer_config.json", "eos_token", key)
    if isinstance(token, dict):  # older versions write it with flags beside it
        token = token.get("content")
    if isinstance(token, str) and token in vocabulary:
        eos_ids.append(vocabulary[token])
    known = set(vocabulary.values())
    for name in ("generation_config.json", "config.json"):
        ids = _read_setting(folder / name, "eos_token_id", key)
        valid = ids if isinstance(ids, list) else [ids]
        if valid := [token_id for token_id in valid if type(token_id) is int and token_id in known]:
            eos_ids += valid
            break
    return tuple(dict.fromkeys(eos_ids))


def _read_setting(path: Path, name: str, key: str) -> Any:
    if not lexists(path):
        return None
    return read_json(path, key, path.parent, dict[str, Any]).get(name)


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
