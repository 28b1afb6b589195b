"""Documents to tokens, on all cores, in order, and never many of them in memory.

Documents are read here and encoded in threads, a chunk each: tiktoken and `tokenizers` let go of Python's lock
while they work, and a chunk is large enough for the hand-over not to matter.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from growlm.data.tiktoken_encodings import TiktokenTokenizer
from growlm.data.tokenizers import Tokenizer

CHUNK_DOCUMENTS = 256
CHUNK_CHARACTERS = 1 << 18
"""A chunk is full at either; one long document is a chunk of its own."""


@dataclass(frozen=True, eq=False)
class TokenizedDocuments:
    """Some consecutive documents.

    Attributes:
        tokens: Theirs, one document after another, each between what the tokenizer has begin and end a text,
            (num_tokens,); of `token_type`.
        lengths: Tokens of each, (num_documents,), int64.
        num_bytes: Of each as UTF-8 text; what begins and ends a text does not count, (num_documents,), int64.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: np.ndarray


def token_type(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """uint16 where the vocabulary fits into it, uint32 otherwise."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def tokenize(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[TokenizedDocuments]:
    """Tokenize documents, each followed by the end of text.

    Args:
        documents: Read in order, at most a few chunks ahead of what is handed out.
        tokenizer: What encodes them.

    Returns:
        All of them in order, chunk by chunk.
    """
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="tokenize") as pool:
        running: deque[Future[TokenizedDocuments]] = deque()
        for chunk in _chunks(documents):
            running.append(pool.submit(encode_documents, chunk, tokenizer))
            while len(running) > 2 * threads or (running and running[0].done()):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def join(parts: Iterable[TokenizedDocuments], tokenizer: Tokenizer) -> TokenizedDocuments:
    """Several, one after another, as one."""
    collected = list(parts)
    empty = np.zeros(0, dtype=np.int64)
    return TokenizedDocuments(
        np.concatenate([np.zeros(0, token_type(tokenizer)), *(part.tokens for part in collected)]),
        np.concatenate([empty, *(part.lengths for part in collected)]),
        np.concatenate([empty, *(part.num_bytes for part in collected)]),
    )


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document)
        if len(chunk) == CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def encode_documents(chunk: list[str], tokenizer: Tokenizer) -> TokenizedDocuments:
    """Tokenize a few documents, in this thread."""
    dtype = token_type(tokenizer)
    ids = array(dtype.char)  # made from a list several times as fast as a NumPy array
    lengths = []
    for encoded in _encoded(chunk, tokenizer):
        before = len(ids)
        ids.extend(tokenizer.begin_of_text)
        ids.extend(encoded)
        ids.append(tokenizer.end_of_text)
        lengths.append(len(ids) - before)
    sizes = [len(document.encode("utf-8", "replace")) for document in chunk]
    return TokenizedDocuments(
        np.frombuffer(ids, dtype=dtype),
        np.array(lengths, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
    )


def _encoded(chunk: list[str], tokenizer: Tokenizer) -> Iterable[list[int]]:
    """Each library by the way that lets go of Python's lock for longest."""
    if isinstance(tokenizer, TiktokenTokenizer):  # whose batch hands over every document by itself
        return map(tokenizer.encode, chunk)
    return tokenizer.encode_batch(chunk)
