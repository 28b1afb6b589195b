"""Use a tokenizer of the user's own, with defaults for what it leaves out."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from growlm.runtime.errors import UserError

OWN_TOKENIZER = "own"
"""Name that a checkpoint records for a tokenizer that only the user's own class can be."""
KEY = "tokenizer._target_"
PROBE_TEXT = "Once upon a time, 1,234 cats\n\tsaid: “Où?” – 猫 🙂"
"""Text that is encoded and decoded before the run."""
NUM_PROBED_TOKENS = 16
"""Number of tokens whose texts are tried if that text cannot be encoded."""


class OwnTokenizer:
    """Tokenizer of the user's own, as growlm uses tokenizers.

    Args:
        target: Name of its class.
        arguments: Arguments of the class, plain JSON.
        tokenizer: Object with `vocab_size`, `eos_token_id`, `encode` and `decode`; it may also have
            `encode_batch`, `eos_token_ids`, `bos_token_ids`, `find_unknown`, `fingerprint` and `files`.

    Raises:
        UserError: If something is missing, or the ids do not fit the vocabulary.
    """

    name = OWN_TOKENIZER
    library = ""

    def __init__(self, target: str, arguments: dict[str, Any], tokenizer: Any) -> None:
        needed = ("vocab_size", "eos_token_id", "encode", "decode")
        if missing := [name for name in needed if getattr(tokenizer, name, None) is None]:
            reason = f"has no {' and no '.join(missing)}; see growlm.data.Tokenizer"
            raise UserError(KEY, target, reason)
        self.tokenizer = tokenizer
        self.vocab_size, self.eos_token_id = int(tokenizer.vocab_size), int(tokenizer.eos_token_id)
        self.eos_token_ids = tuple(getattr(tokenizer, "eos_token_ids", (self.eos_token_id,)))
        self.bos_token_ids = tuple(getattr(tokenizer, "bos_token_ids", ()))
        self.find_unknown = getattr(tokenizer, "find_unknown", None)
        self.files = [Path(path) for path in getattr(tokenizer, "files", ())]
        """Files that every checkpoint gets a copy of."""
        ids = self._check(target)
        self.fingerprint = getattr(tokenizer, "fingerprint", None) or _hash(
            [target, arguments, self.vocab_size, ids, _hash_code(type(tokenizer))]
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without begin and end of text."""
        return list(self.tokenizer.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if hasattr(self.tokenizer, "encode_batch"):
            return [list(ids) for ids in self.tokenizer.encode_batch(texts)]
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; those outside the vocabulary, which a larger model may sample, are U+FFFD."""
        parts: list[str] = []
        known: list[int] = []
        for token in ids:
            if 0 <= token < self.vocab_size:
                known.append(token)
                continue
            parts += [self.tokenizer.decode(known)] if known else []
            parts.append("\ufffd")
            known = []
        return "".join([*parts, self.tokenizer.decode(known)] if known else parts)

    def _check(self, target: str) -> list[int]:
        try:
            ids = self.encode(PROBE_TEXT)
            text = self.decode([*ids, self.eos_token_id])
        except Exception as error:
            found = self._probe_vocabulary()
            if found is None:
                reason = f"cannot encode and decode {PROBE_TEXT!r}: {type(error).__name__}: {error}"
                raise UserError(KEY, target, reason) from error
            ids, text = found
        for token in (*ids, self.eos_token_id, *self.eos_token_ids, *self.bos_token_ids):
            if not isinstance(token, int) or not 0 <= token < self.vocab_size:
                reason = f"gives the id {token!r}; ids are integers below its vocab_size={self.vocab_size}"
                raise UserError(KEY, target, reason)
        if not isinstance(text, str):
            raise UserError(KEY, target, f"decode must return text; it returned {text!r}")
        return ids

    def _probe_vocabulary(self) -> tuple[list[int], str] | None:
        """Return ids that the text of one of the first tokens gives, and their text; None if there are none.

        A tokenizer for another alphabet, such as DNA's, may refuse the usual probe.
        """
        for token in range(min(self.vocab_size, NUM_PROBED_TOKENS)):
            with suppress(Exception):
                if ids := self.encode(self.decode([token])):
                    return ids, self.decode([*ids, self.eos_token_id])
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _hash_code(tokenizer_class: type) -> str:
    """Return a checksum of the class's file, with which the tokens in the cache are no longer valid."""
    try:
        return hashlib.sha256(Path(inspect.getfile(tokenizer_class)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""
