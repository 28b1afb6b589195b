"""A tokenized corpus on disk, which is written once and then memory-mapped.

train.tokens, validation.tokens      token ids, one document after another
train.ends, validation.ends          end of each document, in tokens
validation.bytes                     number of bytes of text in each validation document
validation.unknown                   those of them that the tokenizer has no token for, if there may be any
corpus.json                          counts and the dtype of the ids
manifest.json                        size and checksum of all of them
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

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
UNKNOWN_FILE = "validation.unknown"
"""File that only a tokenizer which may lose text writes; the checksum of the tokens does not depend on it."""
MAX_UNKNOWN_PARTS = 100
"""Number of unknown parts of the text that `corpus.json` lists, those with the most bytes."""
INT64 = np.dtype(np.int64)
TOKEN_DTYPES = ("uint16", "uint32")
"""Possible dtypes of token ids."""


class SplitRecord(TypedDict):
    """Numbers of documents, bytes of text and tokens of one split, as in `corpus.json`."""

    documents: NonNegativeInt
    bytes: NonNegativeInt
    tokens: NonNegativeInt


class UnknownRecord(TypedDict):
    """Bytes of text that the tokenizer has no token for, per split, and what that was, with its bytes."""

    train: NonNegativeInt
    validation: NonNegativeInt
    parts: dict[str, NonNegativeInt]


class CorpusRecord(TypedDict):
    """The fields of `corpus.json` that are read back."""

    dtype: str
    train: SplitRecord
    validation: SplitRecord
    selection: NotRequired[dict[str, NonNegativeInt]]
    unknown: NotRequired[UnknownRecord]


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A tokenized corpus with a training and a validation split, memory-mapped from files.

    The splits share no document. Sizes in bytes are those of the UTF-8 text, without the tokens that begin and end
    a text.

    Attributes:
        train: Token ids, (num_tokens,); uint16 if the vocabulary fits into it, uint32 otherwise.
        train_ends: End of each document in `train`, (train_documents,), int64.
        validation: Token ids of the validation documents, (num_tokens,).
        validation_ends: End of each document in `validation`, (validation_documents,), int64.
        validation_document_bytes: Bytes of each validation document, (validation_documents,), int64.
        train_documents: Number of documents in `train`.
        validation_documents: Number of documents in `validation`.
        train_bytes: Total bytes of the documents in `train`.
        validation_bytes: Total bytes of the documents in `validation`.
        digest: Checksum of the whole corpus.
        selection: Numbers of documents that settings left out or cut, by setting.
        validation_unknown_bytes: Bytes of each validation document that the tokenizer has no token for,
            (validation_documents,), int64; None if it loses nothing.
        num_unknown_bytes: Total of these in both splits.
        unknown_parts: What that was, with the bytes of all occurrences; only the parts with the most bytes.
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
    selection: dict[str, int] = field(default_factory=dict)
    validation_unknown_bytes: np.ndarray | None = None
    num_unknown_bytes: int = 0
    unknown_parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def validation_encoded_bytes(self) -> np.ndarray:
        """Bytes of each validation document that its tokens stand for, (validation_documents,), int64."""
        if self.validation_unknown_bytes is None:
            return self.validation_document_bytes
        return self.validation_document_bytes - self.validation_unknown_bytes

    def iter_validation_documents(self) -> Iterable[tuple[np.ndarray, int]]:
        """Yield the tokens of each validation document and the bytes that they stand for, in order."""
        start = 0
        for end, size in zip(self.validation_ends, self.validation_encoded_bytes, strict=True):
            yield self.validation[start : int(end)], int(size)
            start = int(end)


class CorpusWriter:
    """A context manager that writes a corpus, a batch of documents at a time.

    Args:
        folder: Existing folder, which gets all files but the manifest.
        dtype: Dtype of the token ids.
        validation_every: Every n-th document (n-1, 2n-1, ...) goes into the validation split.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], validation_every: int) -> None:
        self.folder, self.dtype, self.validation_every = folder, dtype, validation_every
        self.num_documents = 0
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in ARRAY_FILES}
        self._split_counts = {name: {"documents": 0, "bytes": 0, "tokens": 0} for name in _SPLITS}
        self._unknown_counts = dict.fromkeys(_SPLITS, 0)
        self._unknown_parts: Counter[str] = Counter()

    def __enter__(self) -> CorpusWriter:
        for name in ARRAY_FILES:
            self._files[name] = (self.folder / name).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, documents: TokenizedDocuments) -> None:
        """Append each document to its split.

        Raises:
            OSError: If it cannot be written.
        """
        document_indices = self.num_documents + np.arange(len(documents.lengths))
        is_validation = document_indices % self.validation_every == self.validation_every - 1
        self.num_documents += len(document_indices)
        self._unknown_parts.update(documents.unknown_parts)
        if len(self._unknown_parts) > 100 * MAX_UNKNOWN_PARTS:  # of words, there may be any number
            self._unknown_parts = Counter(dict(self._unknown_parts.most_common(MAX_UNKNOWN_PARTS)))
        for name, selected in (("train", ~is_validation), ("validation", is_validation)):
            tokens = _select_tokens(documents, selected)
            counts = self._split_counts[name]
            ends = counts["tokens"] + np.cumsum(documents.lengths[selected])
            sizes = documents.num_bytes[selected]
            self._append(f"{name}.tokens", tokens, self.dtype)
            self._append(f"{name}.ends", ends, INT64)
            if name == "validation":
                self._append("validation.bytes", sizes, INT64)
            if documents.num_unknown_bytes is not None:
                unknown = documents.num_unknown_bytes[selected]
                self._unknown_counts[name] += int(unknown.sum())
                if name == "validation":
                    self._append(UNKNOWN_FILE, unknown, INT64)
            counts["tokens"] += len(tokens)
            counts["documents"] += len(sizes)
            counts["bytes"] += int(sizes.sum())

    def finish(self, record: dict[str, Any]) -> dict[str, str]:
        """Write `corpus.json`, and return the checksums of the other files.

        Args:
            record: Additional fields, plain JSON.

        Raises:
            OSError: If it cannot be written.
        """
        for file in self._files.values():
            file.flush()
        content = {"dtype": self.dtype.name, **self._split_counts, **record}
        if UNKNOWN_FILE in self._files:
            parts = dict(self._unknown_parts.most_common(MAX_UNKNOWN_PARTS))
            content["unknown"] = {**self._unknown_counts, "parts": parts}
        (self.folder / CORPUS_FILE).write_text(json.dumps(content, indent=2) + "\n")
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def _append(self, name: str, values: np.ndarray, dtype: np.dtype[Any]) -> None:
        if name not in self._files:
            self._files[name], self._hashes[name] = (
                (self.folder / name).open("wb"),
                hashlib.sha256(),
            )
        data = np.ascontiguousarray(values, dtype=dtype).data
        self._files[name].write(data)
        self._hashes[name].update(data)


_SPLITS = ("train", "validation")


def _select_tokens(documents: TokenizedDocuments, selected: np.ndarray) -> np.ndarray:
    """Return the tokens of the selected documents; without a copy if all are selected."""
    if selected.all():
        return documents.tokens
    if not selected.any():
        return documents.tokens[:0]
    return documents.tokens[np.repeat(selected, documents.lengths)]


def open_corpus(folder: Path, key: str) -> TokenizedCorpus:
    """Memory-map a complete corpus.

    Args:
        folder: Folder of the corpus.
        key: Setting that names the folder, for error messages.

    Raises:
        UserError: If a file is missing or differs from what was written.
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
    unknown = record.get("unknown")
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
        selection=dict(record.get("selection", {})),
        validation_unknown_bytes=None
        if unknown is None
        else map_array(folder / UNKNOWN_FILE, INT64, key),
        num_unknown_bytes=0 if unknown is None else unknown["train"] + unknown["validation"],
        unknown_parts={} if unknown is None else unknown["parts"],
    )
    found = corpus.validation_unknown_bytes
    if found is not None and (
        UNKNOWN_FILE not in files or len(found) != len(corpus.validation_ends)
    ):
        raise UserError(key, folder / UNKNOWN_FILE, "does not match validation.ends")
    for name, tokens, ends, split in (
        ("train", corpus.train, corpus.train_ends, train),
        ("validation", corpus.validation, corpus.validation_ends, validation),
    ):
        recorded = (split["tokens"], split["documents"])
        if recorded != (len(tokens), len(ends)) or (len(ends) and ends[-1] != len(tokens)):
            raise UserError(key, folder / CORPUS_FILE, f"{name} does not match {name}.ends")
    return corpus
