"""Text to token ids and back: the embedded encoding, GPT-2's, and plain bytes.

All three are tiktoken encodings, so they encode in parallel outside Python's lock and read special
tokens that stand in a text as ordinary text. Their last id is the end of a text.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources

import tiktoken

from growlm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
EMBEDDED_FILE = "embedded.tiktoken"

# Merges never cross these pieces. In order: the 's of "Tom's"; a word with the space before it, so that
# " fox" is one token wherever it stands; single digits, so that numbers share their parts; punctuation
# with the space before it, which makes ' "' differ from the '"' that closes; line ends, so that the
# break between paragraphs is one token; any other white space. No look-ahead: with one, a document of
# a million spaces overflows the stack of the matcher.
EMBEDDED_PATTERN = r"'\p{L}+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+"

# Without merges a piece has no effect on the ids; a line at a time is short enough to be fast.
BYTES_PATTERN = r"[^\n]*\n|[^\n]+"

DOWNLOAD_TIMEOUT_S = 15.0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


@dataclass(frozen=True)
class Tokenizer:
    """A named encoding.

    Attributes:
        name: What `load_tokenizer` was asked for.
        vocab_size: Number of ids, the end of text included.
        end_of_text: The id that follows every document; `decode` writes it as `<|endoftext|>`.
    """

    name: str
    vocab_size: int
    end_of_text: int
    _encoding: tiktoken.Encoding = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without an end of text; special tokens written in it are plain text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode` gives them, on all cores."""
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, whatever a model has sampled.

        Bytes that are no valid UTF-8, and ids outside the vocabulary (a model's may be larger than
        its tokenizer's), become U+FFFD.
        """
        token_bytes = self._encoding.decode_single_token_bytes
        known = range(self.vocab_size)
        pieces = (token_bytes(i) if i in known else _REPLACEMENT for i in map(int, ids))
        return b"".join(pieces).decode("utf-8", errors="replace")


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer by name.

    Args:
        name: `embedded` (1024 ids, trained on the embedded stories), `gpt2` (50257 ids, its two files
            downloaded unless TIKTOKEN_CACHE_DIR has them) or `bytes` (257 ids).

    Raises:
        UserError: For another name, and for `gpt2` where its files cannot be had.
    """
    if name not in _ENCODINGS:
        raise UserError("tokenizer.name", name, f"must be one of {', '.join(_ENCODINGS)}")
    encoding = _ENCODINGS[name]()
    return Tokenizer(name, encoding.n_vocab, encoding.eot_token, encoding)


def byte_pair_encoding(name: str, pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """A tiktoken encoding of these merge ranks, with the end of text as its last id."""
    return tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def _embedded() -> tiktoken.Encoding:
    # tiktoken's own loader would keep a copy in its cache and go on using it after a retraining.
    lines = resources.files("growlm.data").joinpath(EMBEDDED_FILE).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return byte_pair_encoding("growlm_embedded", EMBEDDED_PATTERN, ranks)


def _bytes() -> tiktoken.Encoding:
    return byte_pair_encoding("growlm_bytes", BYTES_PATTERN, {bytes([i]): i for i in range(256)})


def _gpt2() -> tiktoken.Encoding:
    try:
        with _bounded_downloads():
            return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network, no access, or a file with other contents
        reason = type(error).__name__
    # Raised out here so that no library traceback hangs on an error that is one sentence long.
    raise UserError(
        "tokenizer.name",
        "gpt2",
        f"its files are neither cached nor could they be downloaded ({reason}); set "
        "TIKTOKEN_CACHE_DIR to a folder that holds them, or choose one that needs no network: "
        "tokenizer=embedded or tokenizer=bytes",
    )


@contextmanager
def _bounded_downloads() -> Iterator[None]:
    """Give `requests.get` a time limit: tiktoken sets none and waits for minutes behind a firewall."""
    import requests

    unbounded = requests.get
    requests.get = partial(unbounded, timeout=DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        requests.get = unbounded


_ENCODINGS: dict[str, Callable[[], tiktoken.Encoding]] = {
    "embedded": _embedded,
    "gpt2": _gpt2,
    "bytes": _bytes,
}
