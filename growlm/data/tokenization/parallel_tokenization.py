"""Documents to tokens, on all cores, in order, and never many of them in memory.

Documents are read here and encoded in threads, a chunk each: tiktoken and `tokenizers` let go of Python's lock
while they work, and a chunk is large enough for the hand-over not to matter.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from growlm.data.tokenization.long_texts import LONG_TEXT_CHARACTERS, encode_long_text
from growlm.data.tokenization.tiktoken_encodings import TiktokenTokenizer
from growlm.data.tokenization.tokenizer import Tokenizer

MAX_CHUNK_DOCUMENTS = 256
MAX_CHUNK_CHARACTERS = 1 << 18
"""A chunk is full at either; one long document is a chunk of its own."""
MAX_QUEUED_CHARACTERS = 1 << 26
"""Of the chunks that are encoded or wait for it, if they are several: few long documents are in memory at once."""


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


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """uint16 where the vocabulary fits into it, uint32 otherwise."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def tokenize_documents(
    documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[TokenizedDocuments]:
    """Tokenize documents, each followed by the end of text.

    Args:
        documents: Read in order, at most a few chunks ahead of what is handed out.
        tokenizer: What encodes them.

    Returns:
        All of them in order, chunk by chunk.
    """
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="tokenize") as pool:
        running: deque[tuple[int, Future[TokenizedDocuments]]] = deque()
        for chunk in _split_into_chunks(documents):
            size = sum(map(len, chunk))
            running.append((size, pool.submit(tokenize_chunk, chunk, tokenizer)))
            del chunk
            while (
                len(running) > 2 * threads
                or sum(size for size, _ in running) > MAX_QUEUED_CHARACTERS
                or (running and running[0][1].done())
            ):
                yield running.popleft()[1].result()
        while running:
            yield running.popleft()[1].result()


def concatenate_documents(
    parts: Iterable[TokenizedDocuments], tokenizer: Tokenizer
) -> TokenizedDocuments:
    """Several, one after another, as one."""
    collected = list(parts)
    empty = np.zeros(0, dtype=np.int64)
    return TokenizedDocuments(
        np.concatenate([np.zeros(0, token_dtype(tokenizer)), *(part.tokens for part in collected)]),
        np.concatenate([empty, *(part.lengths for part in collected)]),
        np.concatenate([empty, *(part.num_bytes for part in collected)]),
    )


def _split_into_chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document)
        del document
        if len(chunk) == MAX_CHUNK_DOCUMENTS or characters >= MAX_CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def tokenize_chunk(chunk: list[str], tokenizer: Tokenizer) -> TokenizedDocuments:
    """Tokenize a few documents, in this thread."""
    dtype = token_dtype(tokenizer)
    ids = array(dtype.char)  # made from a list several times as fast as a NumPy array
    lengths = []
    for parts in _encode_in_parts(chunk, tokenizer):
        before = len(ids)
        ids.extend(tokenizer.bos_token_ids)
        for part in parts:
            ids.extend(iter(part))  # an array's only from another of its own type
        ids.append(tokenizer.eos_token_id)
        lengths.append(len(ids) - before)
    sizes = [_num_bytes(document) for document in chunk]
    return TokenizedDocuments(
        np.frombuffer(ids, dtype=dtype),
        np.array(lengths, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
    )


def _num_bytes(document: str) -> int:
    """Return the length as UTF-8, without a copy of what is ASCII."""
    return len(document) if document.isascii() else len(document.encode("utf-8", "replace"))


def _encode_in_parts(chunk: list[str], tokenizer: Tokenizer) -> Iterator[Iterable[Sequence[int]]]:
    """For each document, its ids in parts."""
    encoded = iter(
        _encode_texts([text for text in chunk if len(text) <= LONG_TEXT_CHARACTERS], tokenizer)
    )
    for text in chunk:
        yield (
            [next(encoded)]
            if len(text) <= LONG_TEXT_CHARACTERS
            else encode_long_text(text, tokenizer)
        )


def _encode_texts(texts: list[str], tokenizer: Tokenizer) -> Iterable[list[int]]:
    """Each library by the way that lets go of Python's lock for longest."""
    if isinstance(tokenizer, TiktokenTokenizer):  # whose batch hands over every document by itself
        return map(tokenizer.encode, texts)
    return tokenizer.encode_batch(texts)
