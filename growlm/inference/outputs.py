"""Format continuations, and write them to standard output or a file."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.inference.generation import Continuation
from growlm.inference.prompts import Prompt
from growlm.inference.text_stream import decode_continuation
from growlm.runtime.errors import DiskError, UserError
from growlm.runtime.output_streams import make_encodable
from growlm.storage.locks import LockedError, lock_for_creation

WriteText = Callable[[str], object]


@dataclass(frozen=True)
class GenerationRequest:
    """One continuation to generate.

    Attributes:
        prompt: Prompt to continue.
        sample_index: Index among the prompt's samples, from 0.
        seed: Seed of the sampling.
    """

    prompt: Prompt
    sample_index: int
    seed: int


def format_json_line(
    request: GenerationRequest,
    continuation: Continuation,
    tokenizer: Tokenizer,
    ensure_ascii: bool = False,
) -> str:
    """Format a continuation as one line of JSON, with all but ASCII escaped where the output is not Unicode."""
    prompt = request.prompt
    record = {
        "prompt": prompt.text,
        "text": decode_continuation(tokenizer, prompt.tokens, continuation.tokens),
        "sample": request.sample_index,
        "seed": request.seed,
        "prompt_tokens": len(prompt.tokens),
        "new_tokens": len(continuation.tokens),
        "finish_reason": continuation.finish_reason,
    }
    return json.dumps(record, ensure_ascii=ensure_ascii) + "\n"


def format_text(
    request: GenerationRequest, continuation: Continuation, tokenizer: Tokenizer
) -> str:
    """Format a continuation as prompt and text, with a line end."""
    prompt = request.prompt
    return prompt.text + decode_continuation(tokenizer, prompt.tokens, continuation.tokens) + "\n"


def replace_control_characters(text: str) -> str:
    """Replace terminal control characters, since a model can write any bytes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def check_output_path(out: str | None) -> None:
    """Check that a file can be created there, without creating it.

    Raises:
        UserError: If it cannot.
    """
    if out is None:
        return
    path = Path(out).expanduser()
    if path.exists():
        raise UserError("out", out, "already exists; choose another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise UserError("out", out, f"no such folder: {path.absolute().parent}")


@contextmanager
def open_output(out: str | None) -> Iterator[WriteText]:
    """Yield a function that writes to standard output, or to a file.

    The file gets its name only when the block ends without an exception.

    Raises:
        OutputLostError: If standard output cannot be written, as when nobody reads a pipe any more.
        UserError: If the file exists by now, or another process writes it.
        DiskError: If the file cannot be written; nothing is left behind.
    """
    if out is None:
        is_terminal = sys.stdout.isatty()

        def write_stdout(text: str) -> None:
            if is_terminal:
                text = replace_control_characters(text)
            sys.stdout.write(make_encodable(text, sys.stdout.encoding))
            sys.stdout.flush()

        yield write_stdout
        return
    path = Path(out).expanduser()
    with _lock_output(path):
        check_output_path(out)
        with _atomic_writer(path) as write:
            yield write


@contextmanager
def _lock_output(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_for_creation(path))
        except LockedError as error:
            raise UserError("out", path, f"another process writes it ({error.owner})") from error
        except OSError as error:
            raise DiskError(path, error) from error
        yield


@contextmanager
def _atomic_writer(path: Path) -> Iterator[WriteText]:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("x", encoding="utf-8", errors="replace") as file:
            yield file.write
        partial.rename(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise DiskError(path, error) from error
        raise
