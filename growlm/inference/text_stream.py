"""Encode prompts, and decode continuations token by token without splitting characters."""

from __future__ import annotations

from collections.abc import Sequence

from growlm.data.tokenization.tokenizer import Tokenizer

CONTEXT_TOKENS = 16
"""Number of the prompt's last tokens that are decoded together with the new ones."""


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a prompt; for an empty one, an end of text unless a begin of text is used."""
    ids = [*tokenizer.bos_token_ids, *tokenizer.encode(text)]
    return ids or [tokenizer.eos_token_id]


class StreamingDetokenizer:
    """A decoder that returns the text that each new token adds to a prompt.

    The results of `push` and `finish`, joined, are the text of all tokens. Tokens are decoded together with
    those before them, because some tokenizers write a word's space only after another word.

    Args:
        tokenizer: Tokenizer to decode with.
        prompt: Token ids of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt)[-CONTEXT_TOKENS:]
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token and return the completed text; empty if the token ends inside a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Return the pending text as it is; no token may follow."""
        text = self._new_text() if self._pending else ""
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._pending])[len(before) :]


def decode_continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Return the text of a whole continuation."""
    stream = StreamingDetokenizer(tokenizer, prompt)
    return "".join(map(stream.push, tokens)) + stream.finish()
