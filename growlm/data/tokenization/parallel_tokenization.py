"""Parallel tokenization of documents, in order and with only a few of them in memory.

Documents are read in this thread and encoded in others, a chunk each: tiktoken and `tokenizers` release the GIL
while they work, and a chunk is large enough to make the hand-over cheap.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from growlm.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from growlm.data.tokenization.long_texts import (
    LONG_TEXT_CHARACTERS,
    encode_long_text,
    split_long_text,
)
from growlm.data.tokenization.tiktoken_encodings import TiktokenTokenizer
from growlm.data.tokenization.tokenizer import Tokenizer

MAX_CHUNK_DOCUMENTS = 256
MAX_CHUNK_CHARACTERS = 1 << 18
"""Size at which a chunk is full, unless `MAX_CHUNK_DOCUMENTS` is reached first."""
MAX_QUEUED_CHARACTERS = 1 << 26
"""Size of all queued and running chunks, unless there is only one: few long documents are in memory at once."""


@dataclass(frozen=True, eq=False)
class TokenizedDocuments:
    """Consecutive tokenized documents.

    Attributes:
        tokens: Token ids of the documents, one after another, each with the tokens that begin and end a text,
            (num_tokens,); of `token_dtype`.
        lengths: Number of tokens of each document, (num_documents,), int64.
        num_bytes: Bytes of each document as UTF-8 text, without the tokens that begin and end it,
            (num_documents,), int64.
        num_unknown_bytes: Those of them that the tokenizer has no token for, (num_documents,), int64; None for a
            tokenizer that loses nothing.
        unknown_parts: What that was, with the bytes of all occurrences.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: np.ndarray
    num_unknown_bytes: np.ndarray | None = None
    unknown_parts: Mapping[str, int] = field(default_factory=dict)


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """Return uint16 if the vocabulary fits into it, else uint32."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def tokenize_documents(
    documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[TokenizedDocuments]:
    """Tokenize documents, each followed by the end of text.

    Args:
        documents: Documents, read in order and at most a few chunks ahead of the output.
        tokenizer: Tokenizer to encode them with.

    Returns:
        All documents in order, chunk by chunk.
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
    """Concatenate several batches of tokenized documents."""
    collected = list(parts)
    empty = np.zeros(0, dtype=np.int64)
    unknown = [part.num_unknown_bytes for part in collected if part.num_unknown_bytes is not None]
    unknown_parts: Counter[str] = Counter()
    for part in collected:
        unknown_parts.update(part.unknown_parts)
    return TokenizedDocuments(
        np.concatenate([np.zeros(0, token_dtype(tokenizer)), *(part.tokens for part in collected)]),
        np.concatenate([empty, *(part.lengths for part in collected)]),
        np.concatenate([empty, *(part.num_bytes for part in collected)]),
        np.concatenate(unknown) if unknown else None,
        unknown_parts,
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
    """Tokenize a few documents in the calling thread."""
    dtype = token_dtype(tokenizer)
    ids = array(dtype.char)  # several times as fast to fill from lists as a NumPy array
    lengths: list[int] = []
    unknown: list[Mapping[str, int]] = []
    may_lose_text = loses_text(tokenizer)
    for text, parts in zip(chunk, _encode_in_parts(chunk, tokenizer), strict=True):
        before = len(ids)
        ids.extend(tokenizer.bos_token_ids)
        for part in parts:
            ids.extend(
                iter(part)
            )  # an array is accepted only with the same type, an iterator always
        if may_lose_text:
            unknown.append(find_unknown(text, ids[before:], tokenizer))
        ids.append(tokenizer.eos_token_id)
        lengths.append(len(ids) - before)
    sizes = [_num_bytes(document) for document in chunk]
    return TokenizedDocuments(
        np.frombuffer(ids, dtype=dtype),
        np.array(lengths, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array([sum(parts.values()) for parts in unknown], dtype=np.int64) if unknown else None,
        sum((Counter(parts) for parts in unknown if parts), Counter()),
    )


def loses_text(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer may have no token for a part of a text."""
    return getattr(tokenizer, "find_unknown", None) is not None


def find_unknown(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Mapping[str, int]:
    """Return the parts of a text that the tokenizer has no token for, with the bytes of all occurrences.

    Args:
        text: Text of any length.
        ids: Its ids.
        tokenizer: Tokenizer that gave them.
    """
    find = getattr(tokenizer, "find_unknown", None)
    if find is None:
        return {}
    if len(text) <= LONG_TEXT_CHARACTERS or not isinstance(tokenizer, HuggingFaceTokenizer):
        return find(text, ids)
    found: Counter[str] = (
        Counter()
    )  # in pieces, since encoding takes many times the memory of its input
    for piece in split_long_text(text):
        found.update(find(piece, ids))
    return found


def _num_bytes(document: str) -> int:
    """Return the length in UTF-8, without copying an ASCII text."""
    return len(document) if document.isascii() else len(document.encode("utf-8", "replace"))


def _encode_in_parts(chunk: list[str], tokenizer: Tokenizer) -> Iterator[Iterable[Sequence[int]]]:
    """Yield each document's ids, in parts."""
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
    """Encode texts in the way that releases the GIL longest for the tokenizer's library."""
    if isinstance(
        tokenizer, TiktokenTokenizer
    ):  # its batch function hands over each document separately
        return map(tokenizer.encode, texts)
    return tokenizer.encode_batch(texts)
