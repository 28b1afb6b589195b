"""Read the prompts of a command line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from growlm.data import find_text_files
from growlm.data.sources.file_readers import FileDocuments
from growlm.data.tokenization.parallel_tokenization import find_unknown, loses_text
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.unknown_limit import UnknownTally
from growlm.inference.text_stream import encode_prompt
from growlm.runtime.errors import UserError
from growlm.storage.input_files import resolve_regular_file

PROMPT_COLUMN = "prompt"
"""Column or key of a prompt in a file that has any."""
MAX_PROMPT_CHARACTERS = 2**26
"""Size limit of all prompts of a file."""
MAX_PROMPT_EXCERPT = 40
"""Number of characters of a prompt that an error message quotes."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        text: Text as given.
        tokens: Token ids that the model reads.
        unknown: What of the text has no token.
    """

    text: str
    tokens: list[int]
    unknown: UnknownTally = field(default_factory=UnknownTally)


def read_prompts(
    prompt: str | None, prompts_file: str | None, tokenizer: Tokenizer, max_seq_len: int
) -> list[Prompt]:
    """Read and tokenize the prompts of a command line.

    Args:
        prompt: Text of a single prompt.
        prompts_file: File of prompts, as an alternative: plain text with one on each line that is not blank, or
            a table or JSON objects with the text under `prompt`, of any kind that training reads.
        tokenizer: Tokenizer of the model.
        max_seq_len: Number of tokens that the model can read.

    Raises:
        UserError: If not exactly one of the two is given, the file cannot be read, or a prompt leaves no room
            for a new token or has no token at all.
    """
    if prompts_file is None:
        if prompt is None:
            raise UserError("prompt", None, "give prompt=TEXT or prompts_file=FILE")
        texts = [("prompt", prompt)]
    elif prompt is not None:
        raise UserError("prompts_file", prompts_file, "give this or prompt, not both")
    else:
        texts = _read_prompts_file(Path(prompts_file).expanduser())
    prompts = []
    for key, text in texts:
        tokens = encode_prompt(tokenizer, text)
        excerpt = text if len(text) <= MAX_PROMPT_EXCERPT else f"{text[:MAX_PROMPT_EXCERPT]} …"
        unknown = tally_unknown_prompt(tokenizer, text)
        if unknown.num_unknown_bytes >= max(
            1, len("".join(text.split()).encode("utf-8", "replace"))
        ):
            raise UserError(key, repr(excerpt), f"nothing is left of it: {unknown.describe()}")
        if len(tokens) >= max_seq_len:
            reason = f"has {len(tokens)} tokens; the model reads {max_seq_len}, new tokens included"
            raise UserError(key, repr(excerpt), reason)
        prompts.append(Prompt(text, tokens, unknown))
    return prompts


def tally_unknown_prompt(tokenizer: Tokenizer, text: str) -> UnknownTally:
    """Return what of a prompt has no token, which the model does not read."""
    parts = find_unknown(text, tokenizer.encode(text), tokenizer) if loses_text(tokenizer) else {}
    num_bytes = len(text.encode("utf-8", "replace"))
    return UnknownTally(num_bytes, sum(parts.values()), Counter(parts))


def _read_prompts_file(path: Path) -> list[tuple[str, str]]:
    """Return each text with its location in the file."""
    resolve_regular_file(path, "prompts_file", None)
    if path.stat().st_size == 0:
        raise UserError("prompts_file", path, "contains no prompts")
    (file,) = find_text_files(str(path), "prompts_file")
    texts, num_characters = [], 0
    for where, text in FileDocuments(file, PROMPT_COLUMN, "line", "prompts_file").read_texts():
        if text is None:
            raise UserError("prompts_file", path, f"{where} has no text under {PROMPT_COLUMN!r}")
        num_characters += len(text)
        if num_characters > MAX_PROMPT_CHARACTERS:
            limit = f"{MAX_PROMPT_CHARACTERS:,} characters"
            raise UserError("prompts_file", path, f"is larger than the limit of {limit}")
        if file.kind != "text" or text.strip():
            texts.append((f"prompts_file {where}", text))
    if not texts:
        raise UserError("prompts_file", path, "contains no prompts")
    return texts
