"""A tokenizer from a `tokenizer.json`, read by the `tokenizers` library, and the files beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growlm.runtime.errors import UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import MAX_TOKENIZER_BYTES, lexists, read_json, read_text
from growlm.storage.sidecar_files import CHAT_TEMPLATE_FOLDER

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
    "chat_template.json",
    CHAT_TEMPLATE_FOLDER,
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab.json",
)
"""Files of a Hugging Face folder, and one folder in it, that describe its tokenizer.

growlm reads the first and, for the end of text, the next two, `generation_config.json` and the model's
`config.json`. All are copied into checkpoints, so that other tools find the tokenizer unchanged."""
EOS_TOKEN_ENTRY = "eos_token"
"""Entry of a checkpoint's `config.json`: the end of text, where a run's `tokenizer.eos_token` gave it."""


def find_tokenizer_folder(path: Path, key: str) -> Path:
    """Return the folder of a tokenizer's files, from the path of the folder or of the `tokenizer.json` in it.

    Raises:
        UserError: If the path is that of another file.
    """
    if not path.is_file():
        return path
    if path.name == TOKENIZER_JSON:
        return path.parent
    reason = (
        f"is not named {TOKENIZER_JSON}; rename it, since checkpoints keep it under that name (for a "
        "SentencePiece model, transformers' save_pretrained writes one)"
    )
    raise UserError(key, path, reason)


def find_tokenizer_files(path: Path) -> list[Path]:
    """Return the tokenizer files of a folder, or beside a `tokenizer.json`; none if there is no such file."""
    folder = path.parent if path.name == TOKENIZER_JSON and path.is_file() else path
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
    """Turn an error or panic of the Rust library into one about the file: unknown text that it has no token for.

    Raises:
        UserError: For an error of the library.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
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
        path: The file, or its folder.
        key: Setting that names it, for error messages.
        eos_token: Token that ends a text, in place of what the files name.

    Attributes:
        find_unknown: Function that finds what of a text has no token (`unknown_text.py`); None if there is a
            token for every byte.
        eos_token_to_record: The end of text, if the files that go with a checkpoint do not name it; else None.

    Raises:
        UserError: If the file is missing or unreadable, or no end-of-text token is defined.
    """

    name = HUGGINGFACE
    library = "tokenizers"
    find_unknown: Callable[[str, Sequence[int]], Mapping[str, int]] | None

    def __init__(self, path: Path, key: str, eos_token: str | None = None) -> None:
        from growlm.data.tokenization.unknown_text import make_unknown_text_finder

        folder = find_tokenizer_folder(path, key)
        self.folder, self._key = folder, key
        if not lexists(folder):
            raise UserError(key, folder, "does not exist")
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
        self._find_unknown = make_unknown_text_finder(self.backend)
        self.find_unknown = None if self._find_unknown is None else self._find_unknown_text
        self.eos_token_ids = _read_eos_token_ids(folder, vocabulary, key)
        if eos_token is not None:
            if eos_token not in vocabulary:
                reason = f"is not in the vocabulary of {folder / TOKENIZER_JSON}"
                raise UserError(f"{key.removesuffix('path')}eos_token", eos_token, reason)
            first = vocabulary[eos_token]
            self.eos_token_ids = tuple(dict.fromkeys((first, *self.eos_token_ids)))
        if not self.eos_token_ids:
            files = "none of tokenizer_config.json, generation_config.json, config.json"
            reason = (
                f"{files} names an end-of-text token (eos_token) that is in the vocabulary; training can be "
                "told with tokenizer.eos_token=TOKEN"
            )
            raise UserError(key, folder, reason)
        self.eos_token_id = self.eos_token_ids[0]
        named = _read_named_eos_ids(folder, vocabulary, key)
        named = named or _read_eos_token(folder / "special_tokens_map.json", vocabulary, key)
        is_named = named[:1] == [self.eos_token_id]
        self.eos_token_to_record = None if is_named else self.backend.id_to_token(self.eos_token_id)

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

    def _find_unknown_text(self, text: str, ids: Sequence[int]) -> Mapping[str, int]:
        assert self._find_unknown is not None
        with self._translate_panics():
            return self._find_unknown(_replace_surrogates(text), ids)

    def _find_prefix(self) -> tuple[int, ...]:
        """Return the tokens that the tokenizer's post-processing puts before every text, such as Llama's <s>.

        It is applied to the encoding of another tokenizer: this one may have no token for any given text.
        """
        import tokenizers

        word = tokenizers.Tokenizer(tokenizers.models.WordLevel({"word": 0}, unk_token="word"))
        processed = self.backend.post_process(word.encode("word"))
        if 0 not in processed.special_tokens_mask:  # a template without the text
            return ()
        return tuple(processed.ids[: processed.special_tokens_mask.index(0)])


def _read_named_eos_ids(folder: Path, vocabulary: dict[str, int], key: str) -> list[int]:
    """Return the ends of text that the files name which go with a checkpoint.

    The token of `tokenizer_config.json` is first, then those that the model may end with.
    """
    eos_ids = _read_eos_token(folder / "tokenizer_config.json", vocabulary, key)
    return eos_ids + _read_valid_eos_ids(folder / "generation_config.json", vocabulary, key)


def _read_eos_token_ids(folder: Path, vocabulary: dict[str, int], key: str) -> tuple[int, ...]:
    """Return the ends of text of a folder, the one that follows documents first.

    A growlm checkpoint says in `config.json` which one its run was given, a Hugging Face model there what it may
    end with, if no `generation_config.json` does. Of older folders, `special_tokens_map.json` is read last.
    """
    given = _read_eos_token(folder / "config.json", vocabulary, key)
    named = _read_named_eos_ids(folder, vocabulary, key)
    if not _read_valid_eos_ids(folder / "generation_config.json", vocabulary, key):
        named += _read_valid_eos_ids(folder / "config.json", vocabulary, key)
    ids = given + named or _read_eos_token(folder / "special_tokens_map.json", vocabulary, key)
    return tuple(dict.fromkeys(ids))


def _read_valid_eos_ids(path: Path, vocabulary: dict[str, int], key: str) -> list[int]:
    ids, known = _read_setting(path, "eos_token_id", key), set(vocabulary.values())
    listed = ids if isinstance(ids, list) else [ids]
    return [token_id for token_id in listed if type(token_id) is int and token_id in known]


def _read_eos_token(path: Path, vocabulary: dict[str, int], key: str) -> list[int]:
    token = _read_setting(path, EOS_TOKEN_ENTRY, key)
    if isinstance(token, dict):  # older versions write it with flags beside it
        token = token.get("content")
    return [vocabulary[token]] if isinstance(token, str) and token in vocabulary else []


def _read_setting(path: Path, name: str, key: str) -> Any:
    if not lexists(path):
        return None
    return read_json(path, key, path.parent, dict[str, Any]).get(name)


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
