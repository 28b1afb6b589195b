"""growlm's named encodings, all byte-pair encodings in tiktoken's format."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from importlib import resources
from pathlib import Path

import tiktoken

from growlm.runtime.errors import UserError
from growlm.storage.input_files import MAX_RECORD_BYTES, lexists, open_input_file

END_OF_TEXT = "<|endoftext|>"
EMBEDDED_FILE = "embedded.tiktoken"

# Merges never cross these pieces. In order: the 's of "Tom's"; a word with the space before it, so that
# " fox" is one token wherever it occurs; single digits, so that numbers share tokens; punctuation
# with the space before it, so that an opening ' "' differs from a closing '"'; line ends, so that the
# break between paragraphs is one token; any other white space. No look-ahead: with one, a document of
# a million spaces overflows the matcher's stack.
EMBEDDED_PATTERN = r"'\p{L}+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+"

# Without merges, pieces do not affect the ids; a line at a time is short enough to be fast.
BYTES_PATTERN = r"[^\n]*\n|[^\n]+"

GPT2_FILES = tuple(
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
    for name in ("vocab.bpe", "encoder.json")
)
"""GPT-2's files that tiktoken reads; it names its cached copies by their addresses."""
DOWNLOAD_TIMEOUT_S = 15.0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class TiktokenTokenizer:
    """A `Tokenizer` of a tiktoken encoding.

    Args:
        name: Name of the tokenizer.
        encoding: Encoding whose last special token is the end of text.
    """

    library = "tiktoken"
    bos_token_ids: tuple[int, ...] = ()

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        self.name, self.encoding = name, encoding
        self.vocab_size, self.eos_token_id = encoding.n_vocab, encoding.eot_token
        self.eos_token_ids: tuple[int, ...] = (self.eos_token_id,)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that ids depend on; see `Tokenizer`."""
        pattern, ranks = self.encoding._pat_str, self.encoding._mergeable_ranks
        digest = hashlib.sha256(json.dumps([pattern, self.vocab_size, self.eos_token_id]).encode())
        for token, rank in ranks.items():
            digest.update(b"%d %d " % (rank, len(token)) + token)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode one text; see `Tokenizer`."""
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts; see `Tokenizer`."""
        return self.encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; see `Tokenizer`."""
        token_bytes = self.encoding.decode_single_token_bytes
        known = range(self.vocab_size)
        pieces = (token_bytes(i) if i in known else _REPLACEMENT for i in map(int, ids))
        return b"".join(pieces).decode("utf-8", errors="replace")


def make_byte_pair_encoding(name: str, pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """Create a tiktoken encoding of these merge ranks, with the end of text as its last id."""
    return tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def _load_embedded() -> tiktoken.Encoding:
    # tiktoken's own loader would cache a copy and keep using it after the tokenizer is retrained.
    lines = resources.files("growlm.data").joinpath(EMBEDDED_FILE).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return make_byte_pair_encoding("growlm_embedded", EMBEDDED_PATTERN, ranks)


def _make_bytes() -> tiktoken.Encoding:
    return make_byte_pair_encoding(
        "growlm_bytes", BYTES_PATTERN, {bytes([i]): i for i in range(256)}
    )


def _load_gpt2() -> tiktoken.Encoding:
    _check_cached_files()
    try:
        with _limit_download_time():
            return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network, no access, or a file with other contents
        if isinstance(error, OSError) and error.filename is not None:
            # Of the cache. The network's errors name no file.
            problem = f"its files cannot be cached: {error.filename}: {error.strerror}"
            raise UserError(
                "tokenizer.name", "gpt2", f"{problem}; set TIKTOKEN_CACHE_DIR"
            ) from error
        reason = type(error).__name__
    # Raised outside the handler, so that a one-sentence error does not carry a library's traceback.
    raise UserError(
        "tokenizer.name",
        "gpt2",
        f"its files are not cached and could not be downloaded ({reason}); set "
        "TIKTOKEN_CACHE_DIR to a folder that holds them, or use a tokenizer that needs no network: "
        "tokenizer=embedded or tokenizer=bytes",
    )


def _check_cached_files() -> None:
    """Check the folder that tiktoken caches its files in, which all users of a machine may share.

    Raises:
        UserError: If a file there is not a regular one, or is too large.
    """
    default_folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    cache_folder = os.environ.get(
        "TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default_folder)
    )
    if not cache_folder:  # tiktoken caches nothing then
        return
    for url in GPT2_FILES:
        path = Path(cache_folder, hashlib.sha1(url.encode()).hexdigest())
        if not lexists(path):
            continue
        with open_input_file(path, "tokenizer.name", root=None) as file:
            if os.fstat(file.fileno()).st_size > MAX_RECORD_BYTES:
                raise UserError(
                    "tokenizer.name", path, f"is larger than {MAX_RECORD_BYTES:,} bytes"
                )


@contextmanager
def _limit_download_time() -> Iterator[None]:
    """Give `requests.get` a timeout: tiktoken sets none and waits for minutes behind a firewall."""
    import requests

    original_get = requests.get
    requests.get = partial(original_get, timeout=DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        requests.get = original_get


ENCODINGS: dict[str, Callable[[], tiktoken.Encoding]] = {
    "embedded": _load_embedded,
    "gpt2": _load_gpt2,
    "bytes": _make_bytes,
}
"""Encodings by name; `gpt2` raises `UserError` if its files are neither cached nor downloadable."""
