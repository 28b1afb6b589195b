"""Find the parts of a text that a Hugging Face tokenizer has no token for: they are dropped or become `<unk>`.

What a tokenizer changes by design is not unknown: what its normalizer rewrites or removes (case, accents, control
characters) and the separators that its pre-tokenizer removes (white space). Only what reaches the vocabulary and
is not in it counts.

Most tokenizers have a token for every byte and lose nothing; they have no finder, so that it costs nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

UnknownTextFinder = Callable[[str, Sequence[int]], Mapping[str, int]]
"""Function of a text and its ids. Returns the unknown parts, each with the bytes lost in all its occurrences."""


def make_unknown_text_finder(backend: tokenizers.Tokenizer) -> UnknownTextFinder | None:
    """Return a function that finds a text's unknown parts; None for a tokenizer with a token for every byte."""
    kind = json.loads(_read_options(backend.model))
    vocabulary = backend.get_vocab(with_added_tokens=False)
    byte_tokens = {byte for byte in range(256) if f"<0x{byte:02X}>" in vocabulary}
    if kind.get("byte_fallback") and len(byte_tokens) == 256:
        return None
    if isinstance(backend.model, tokenizers.models.BPE):
        return _make_bpe_finder(
            backend, vocabulary, byte_tokens if kind.get("byte_fallback") else set()
        )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if (
        isinstance(backend.model, tokenizers.models.Unigram)
        and _is_byte_level(backend)
        and vocabulary.keys() >= set(alphabet)
    ):
        return None
    unknown_id = kind.get("unk_id", _get_id(vocabulary, kind.get("unk_token")))
    if unknown_id is None:  # the library refuses unknown text itself
        return None

    def find(text: str, ids: Sequence[int]) -> Mapping[str, int]:
        return _find_unknown_tokens(backend, unknown_id, text) if unknown_id in ids else {}

    return find


def _read_options(model: Any) -> str:
    """Return a model's options as JSON, without its vocabulary where that is large and not needed."""
    if isinstance(model, tokenizers.models.Unigram):
        return bytes(model.__getstate__()).decode()
    names = ("byte_fallback", "unk_token")
    return json.dumps({name: getattr(model, name, None) for name in names})


def _get_id(vocabulary: Mapping[str, int], token: str | None) -> int | None:
    return None if token is None else vocabulary.get(token)


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Return whether the vocabulary is looked up for bytes, written as one character each."""
    return any(
        step.get("type") == "ByteLevel"
        for part in (backend.normalizer, backend.pre_tokenizer)
        for step in _iter_steps(part)
    )


def _iter_steps(part: Any) -> Iterator[dict[str, Any]]:
    steps = [] if part is None else [json.loads(part.__getstate__())]
    while steps:
        step = steps.pop()
        yield step
        steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]


def _make_bpe_finder(
    backend: tokenizers.Tokenizer, vocabulary: Mapping[str, int], byte_tokens: set[int]
) -> UnknownTextFinder | None:
    """Return a finder for a BPE model, which looks up every character by itself before it merges any."""
    model, normalizer = backend.model, backend.normalizer
    is_byte_level, unknown_id = _is_byte_level(backend), _get_id(vocabulary, model.unk_token)
    prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
    forms = {(before, after) for before in ("", prefix) for after in ("", suffix)}

    def has_token(character: str, before: str = "", after: str = "") -> bool:
        in_bytes = byte_tokens and byte_tokens.issuperset(_encode(character))
        return bool(in_bytes) or before + character + after in vocabulary

    def has_every_token(character: str) -> bool:
        return all(has_token(character, *form) for form in forms)

    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if is_byte_level and all(map(has_every_token, alphabet)):
        return None
    added = {
        index
        for index, token in backend.get_added_tokens_decoder().items()
        if not token.special  # special ones in a text are plain text
    }
    # Whether a character has a token, and how many bytes it stands for, does not depend on its neighbors.
    is_independent = (
        len(forms) == 1
        and not model.ignore_merges
        and (normalizer is None or is_byte_level)
        and not added
    )
    known: set[str] = set()  # characters that have a token in any text, as they are met
    lost_bytes: dict[str, int] = {}

    def count_lost_bytes(character: str) -> int:
        parts = _pre_tokenize(backend, character)
        missing = [part for part in parts if not has_every_token(part)]
        return len(missing) if is_byte_level else len(_encode(character)) if missing else 0

    def find(text: str, ids: Sequence[int]) -> Mapping[str, int]:
        source = text if normalizer is None else normalizer.normalize_str(text)
        unknown = set(source).difference(known)
        for character in unknown - lost_bytes.keys():
            if count := count_lost_bytes(character):
                lost_bytes[character] = count
            else:
                known.add(character)
        unknown -= known
        if not unknown:
            return {}
        if is_independent:
            return {each: source.count(each) * lost_bytes[each] for each in unknown}
        if unknown_id is not None:
            return _find_unknown_tokens(backend, unknown_id, text) if unknown_id in ids else {}
        found: Counter[str] = Counter()
        for segment in _split_at_added_tokens(backend, text, added):
            found.update(find_dropped(segment))
        return found

    def find_dropped(text: str) -> Mapping[str, int]:
        """Look up each character as the model does, which drops it without a token.

        The spans of its tokens say nothing about what is between them: within a word, tokenizers counts them
        without what was dropped.
        """
        normalized = tokenizers.NormalizedString(text)
        if normalizer is not None:
            normalizer.normalize(normalized)
        source, missing = normalized.normalized, []
        whole = [(source, (0, len(source)))]
        pieces = (
            whole
            if backend.pre_tokenizer is None
            else backend.pre_tokenizer.pre_tokenize_str(source)
        )
        for piece, (start, end) in pieces:
            if model.ignore_merges and piece in vocabulary:
                continue
            owners = list(range(start, end))  # position in `source` of each character of the piece
            if is_byte_level:
                owners = [owner for owner in owners for _ in _encode(source[owner])]
            added_before = len(piece) - len(owners)  # a space before the text
            for index, character in enumerate(piece):
                before, after = prefix if index else "", suffix if index == len(piece) - 1 else ""
                if index >= added_before and not has_token(character, before, after):
                    missing.append(owners[index - added_before])
        if is_byte_level:
            return Counter(source[position] for position in missing)
        return _count_original_bytes(normalized, missing)

    return find


def _pre_tokenize(backend: tokenizers.Tokenizer, character: str) -> list[str]:
    """Return what reaches the vocabulary of one character of normalized text, without prefixes of whole texts."""
    if backend.pre_tokenizer is None:
        return [character]
    once, twice = (
        Counter("".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)))
        for text in (character, 2 * character)
    )
    return list((twice - once).elements())


def _find_unknown_tokens(
    backend: tokenizers.Tokenizer, unknown_id: int, text: str
) -> Mapping[str, int]:
    """Return the parts that became the unknown token, which a text that spells it out may have, too."""
    encoding = backend.encode(text, add_special_tokens=False)
    found: Counter[str] = Counter()
    done, unknown_token = 0, backend.id_to_token(unknown_id)
    for index, token_id in enumerate(encoding.ids):
        if token_id == unknown_id and (span := encoding.token_to_chars(index)) is not None:
            part = text[max(done, span[0]) : span[1]]  # several tokens may be of one character
            done = max(done, span[1])
            if part != unknown_token:
                found[part] += len(_encode(part))
    return +found


def _split_at_added_tokens(
    backend: tokenizers.Tokenizer, text: str, added: set[int]
) -> Iterator[str]:
    """Yield what the model reads between the tokens that were added to its vocabulary."""
    if not added:
        yield text
        return
    encoding, begin = backend.encode(text, add_special_tokens=False), 0
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token_id in added:
            yield text[begin:start]
            begin = end
    yield text[begin:]


def _count_original_bytes(
    normalized: tokenizers.NormalizedString, positions: Sequence[int]
) -> Mapping[str, int]:
    """Return the parts of the original text that these characters of the normalized one come from."""

    def get_original(start: int, end: int) -> str:
        found = normalized[start:end]
        return "" if found is None else found.original

    found: Counter[str] = Counter()
    missing = set(positions)
    for position in positions:
        after = get_original(position + 1, position + 2)
        part = get_original(position, position + 2).removesuffix(
            after
        )  # with marks composed with it
        if not part and position + 1 not in missing:  # of two that one became, count one
            part = get_original(position, position + 1)
        found[part] += len(_encode(part))
    return +found


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")
