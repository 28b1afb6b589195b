"""Text out of tokens: prompts in, and continuations as they come, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

from growlm.data.tokenization.tokenizer import Tokenizer

CONTEXT_TOKENS = 16
"""Tokens of the prompt that are looked back on."""


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """What a model reads of a prompt; of an empty one, what precedes every document."""
    ids = [*tokenizer.bos_token_ids, *tokenizer.encode(text)]
    return ids or [tokenizer.eos_token_id]


class StreamingDetokenizer:
    """The text that each new token adds to a prompt.

    What `push` and `end` give, put together, is the text of all the tokens. Tokens are decoded after those before
    them: some tokenizers write a word's space only where another word precedes it.

    Args:
        tokenizer: Decodes.
        prompt: Token ids.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt)[-CONTEXT_TOKENS:]
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that is certain now; empty where the token ends inside a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """What was still waiting, as it is; nothing may follow."""
        text = self._new_text() if self._pending else ""
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._pending])[len(before) :]


def decode_continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of a whole continuation."""
    stream = StreamingDetokenizer(tokenizer, prompt)
    return "".join(map(stream.push, tokens)) + stream.finish()
