"""A tokenized corpus on disk: written once, document after document, then mapped into memory.

train.tokens, validation.tokens      token ids, one document after another
train.ends, validation.ends          where each document ends, in tokens
validation.bytes                     how many bytes of text each held-out document has
corpus.json                          counts and the type of the ids
manifest.json                        size and checksum of all of them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np

from growlm.data.memory_map import map_array
from growlm.data.tokenization.parallel_tokenization import TokenizedDocuments
from growlm.runtime.errors import UserError
from growlm.storage.input_files import read_json
from growlm.storage.integrity import MANIFEST, check_manifest, read_manifest
from growlm.storage.typed_values import NonNegativeInt

CORPUS_FILE = "corpus.json"
ARRAY_FILES = (
    "train.tokens",
    "train.ends",
    "validation.tokens",
    "validation.ends",
    "validation.bytes",
)
INT64 = np.dtype(np.int64)
TOKEN_DTYPES = ("uint16", "uint32")
"""Of token ids."""


class SplitRecord(TypedDict):
    """What `corpus.json` says of one part."""

    documents: NonNegativeInt
    bytes: NonNegativeInt
    tokens: NonNegativeInt


class CorpusRecord(TypedDict):
    """The contents of `corpus.json`, as far as they are read."""

    dtype: str
    train: SplitRecord
    validation: SplitRecord


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A tokenized corpus in its two parts, which share no document; mapped from files, not in memory.

    Attributes:
        train: Token ids, (num_tokens,); uint16 where the vocabulary fits into it, uint32 otherwise.
        train_ends: Where each document of `train` ends, (train_documents,), int64.
        validation: The same of the held-out documents.
        validation_ends: Likewise.
        validation_sizes: Bytes of each held-out document, (validation_documents,), int64.
        train_documents: Number of documents in `train`.
        validation_documents: Number of documents in `validation`.
        train_bytes: Their length as UTF-8 text; what begins and ends a text does not count.
        validation_bytes: The same of `validation`.
        digest: Checksum of all of it.
    """

    train: np.ndarray
    train_ends: np.ndarray
    validation: np.ndarray
    validation_ends: np.ndarray
    validation_document_bytes: np.ndarray
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    digest: str

    def iter_validation_documents(self) -> Iterable[tuple[np.ndarray, int]]:
        """Tokens and bytes of each held-out document, in order."""
        start = 0
        for end, size in zip(self.validation_ends, self.validation_document_bytes, strict=True):
            yield self.validation[start : int(end)], int(size)
            start = int(end)


class CorpusWriter:
    """Writes a corpus, a batch of documents at a time; use as a context.

    Args:
        folder: Exists; filled with everything but the manifest.
        dtype: Of the token ids.
        validation_every: Documents n-1, 2n-1, ... of this n are held out.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], validation_every: int) -> None:
        self.folder, self.dtype, self.validation_every = folder, dtype, validation_every
        self.num_documents = 0
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in ARRAY_FILES}
        self._split_counts = {name: {"documents": 0, "bytes": 0, "tokens": 0} for name in _SPLITS}

    def __enter__(self) -> CorpusWriter:
        for name in ARRAY_FILES:
            self._files[name] = (self.folder / name).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, documents: TokenizedDocuments) -> None:
        """Put each document where it belongs.

        Raises:
            OSError: If it cannot be written.
        """
        numbers = self.num_documents + np.arange(len(documents.lengths))
        held_out = numbers % self.validation_every == self.validation_every - 1
        self.num_documents += len(numbers)
        for name, chosen in (("train", ~held_out), ("validation", held_out)):
            tokens = _select_tokens(documents, chosen)
            part = self._split_counts[name]
            ends = part["tokens"] + np.cumsum(documents.lengths[chosen])
            sizes = documents.num_bytes[chosen]
            self._append(f"{name}.tokens", tokens, self.dtype)
            self._append(f"{name}.ends", ends, INT64)
            if name == "validation":
                self._append("validation.bytes", sizes, INT64)
            part["tokens"] += len(tokens)
            part["documents"] += len(sizes)
            part["bytes"] += int(sizes.sum())

    def finish(self, record: dict[str, Any]) -> dict[str, str]:
        """Write the record; the checksums of the other files.

        Args:
            record: What else to remember, plain JSON.

        Raises:
            OSError: If it cannot be written.
        """
        for file in self._files.values():
            file.flush()
        content = {"dtype": self.dtype.name, **self._split_counts, **record}
        (self.folder / CORPUS_FILE).write_text(json.dumps(content, indent=2) + "\n")
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def _append(self, name: str, values: np.ndarray, dtype: np.dtype[Any]) -> None:
        data = np.ascontiguousarray(values, dtype=dtype).data
        self._files[name].write(data)
        self._hashes[name].update(data)


_SPLITS = ("train", "validation")


def _select_tokens(documents: TokenizedDocuments, chosen: np.ndarray) -> np.ndarray:
    """The tokens of some of the documents; of all of them without a copy."""
    if chosen.all():
        return documents.tokens
    if not chosen.any():
        return documents.tokens[:0]
    return documents.tokens[np.repeat(chosen, documents.lengths)]


def open_corpus(folder: Path, key: str) -> TokenizedCorpus:
    """Map a corpus that was written whole.

    Args:
        folder: Of the corpus.
        key: What the user calls it, for the message.

    Raises:
        UserError: If a file is missing or is not, to the byte, what was written.
    """
    check_manifest(folder, key)
    record = read_json(folder / CORPUS_FILE, key, folder, CorpusRecord)
    files = read_manifest(folder, key)
    if missing := [name for name in ARRAY_FILES if name not in files]:
        raise UserError(key, folder / missing[0], f"is not in {MANIFEST}")
    digest = hashlib.sha256("".join(files[name]["sha256"] for name in ARRAY_FILES).encode())
    train, validation = record["train"], record["validation"]
    if record["dtype"] not in TOKEN_DTYPES:
        raise UserError(
            key, folder / CORPUS_FILE, f"dtype must be one of {', '.join(TOKEN_DTYPES)}"
        )
    ids = np.dtype(record["dtype"])
    corpus = TokenizedCorpus(
        train=map_array(folder / "train.tokens", ids, key),
        train_ends=map_array(folder / "train.ends", INT64, key),
        validation=map_array(folder / "validation.tokens", ids, key),
        validation_ends=map_array(folder / "validation.ends", INT64, key),
        validation_document_bytes=map_array(folder / "validation.bytes", INT64, key),
        train_documents=train["documents"],
        validation_documents=validation["documents"],
        train_bytes=train["bytes"],
        validation_bytes=validation["bytes"],
        digest=digest.hexdigest(),
    )
    for name, tokens, ends, part in (
        ("train", corpus.train, corpus.train_ends, train),
        ("validation", corpus.validation, corpus.validation_ends, validation),
    ):
        told = (part["tokens"], part["documents"])
        if told != (len(tokens), len(ends)) or (len(ends) and ends[-1] != len(tokens)):
            raise UserError(key, folder / CORPUS_FILE, f"{name} does not agree with {name}.ends")
    return corpus
