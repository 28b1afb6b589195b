"""Text out of tokens: prompts in, and continuations as they come, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

from growlm.data.tokenization.tokenizer import Tokenizer

CONTEXT = 16
"""Tokens of the prompt that are looked back on."""


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What a model reads of a prompt; of an empty one, what precedes every document."""
    ids = [*tokenizer.begin_of_text, *tokenizer.encode(text)]
    return ids or [tokenizer.end_of_text]


class TextStream:
    """The text that each new token adds to a prompt.

    What `push` and `end` give, put together, is the text of all the tokens. Tokens are decoded after those before
    them: some tokenizers write a word's space only where another word precedes it.

    Args:
        tokenizer: Decodes.
        prompt: Token ids.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt)[-CONTEXT:]
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that is certain now; empty where the token ends inside a character."""
        self._waiting.append(token)
        text = self._new_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._context, self._waiting = self._waiting, []
        return text

    def end(self) -> str:
        """What was still waiting, as it is; nothing may follow."""
        text = self._new_text() if self._waiting else ""
        self._waiting = []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._waiting])[len(before) :]


def continuation_text(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of a whole continuation."""
    stream = TextStream(tokenizer, prompt)
    return "".join(map(stream.push, tokens)) + stream.end()
