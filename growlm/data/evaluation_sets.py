"""Texts that a run is evaluated on: a validation text of the user's own, and further sets by name.

A run reads the beginning of each: as many whole documents as its validation needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from growlm.data.corpus import TokenizedCorpus
from growlm.data.packing import ValidationSamples
from growlm.data.sources.source_factory import open_source
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.unknown_limit import UnknownTally
from growlm.data.validation_split import (
    ValidationSplit,
    collect_validation_split,
    stream_validation_documents,
)
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_ratio

if TYPE_CHECKING:
    from growlm.config.schema import DataConfig, SourceConfig

VALIDATION = "data.validation"
"""Key of the text to validate on."""
SETS_PREFIX = "data.evaluation_sets."
"""Beginning of the keys of further sets."""
MAX_COMPARED = 100_000
"""Largest number of documents that are read to find duplicates, which takes a fraction of a second."""


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The documents of a text that a run is evaluated on.

    Attributes:
        samples: Samples that are cut from the documents.
        split: The documents.
        fingerprint: Hash of the documents as tokenized.
        unknown: What of them the tokenizer has no token for.
        notes: What the user should know of what is read.
    """

    samples: ValidationSamples
    split: ValidationSplit
    fingerprint: str
    unknown: UnknownTally
    notes: tuple[str, ...]


def open_evaluation_sets(
    settings: DataConfig, tokenizer: Tokenizer, *, seed: int, sequence_length: int, max_samples: int
) -> dict[str, EvaluationSet]:
    """Open the texts that the settings name, by their keys; see `DataConfig.evaluation_texts`.

    Args:
        settings: Data settings.
        tokenizer: Tokenizer to encode the documents with.
        seed: Seed of the run.
        sequence_length: Number of positions a model sees.
        max_samples: Largest number of samples that will be read of each.

    Raises:
        UserError: If a text cannot be read, is too short, or has more that the tokenizer has no token for than
            `settings.max_unknown_fraction` allows.
    """
    return {
        key: _open_evaluation_set(
            text.resolve(settings, key),
            text.given,
            key,
            settings,
            tokenizer,
            seed,
            sequence_length,
            max_samples,
        )
        for key, text in settings.evaluation_texts.items()
    }


def _open_evaluation_set(
    source: SourceConfig,
    given: Collection[str],
    key: str,
    settings: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    sequence_length: int,
    max_samples: int,
) -> EvaluationSet:
    unknown = UnknownTally()
    opened = open_source(source, key, seed, settings.streaming, given)
    documents = stream_validation_documents(opened, tokenizer, 1, unknown)
    # One source, so the mixture has no order of its own.
    split = collect_validation_split(
        [documents], [1], 0, tokenizer, max_samples * sequence_length + 1
    )
    if len(split.tokens) <= sequence_length:
        named = ("path", source.path) if source.source == "text" else ("split", source.split)
        reason = (
            f"holds {len(split.tokens):,} tokens in {split.num_documents:,} document(s); one sample of sequence "
            f"length {sequence_length} needs {sequence_length + 1}: use more text or a shorter sequence_length"
        )
        raise UserError(f"{key}.{named[0]}", named[1], reason)
    unknown.check(settings.max_unknown_fraction, key)
    digest = hashlib.sha256(np.ascontiguousarray(split.tokens, np.int64).data)
    digest.update(split.ends.data)
    digest.update(split.document_bytes.data)
    samples = ValidationSamples(split.tokens, sequence_length)
    return EvaluationSet(samples, split, digest.hexdigest(), unknown, opened.notes)


def name_evaluation_sets(sets: Mapping[str, EvaluationSet]) -> dict[str, EvaluationSet]:
    """Return the further sets, those besides the one to validate on, by name instead of key."""
    return {key.removeprefix(SETS_PREFIX): each for key, each in sets.items() if key != VALIDATION}


def describe_evaluation_sets(
    sets: Mapping[str, EvaluationSet], corpora: Sequence[TokenizedCorpus] = ()
) -> Iterator[str]:
    """Yield a line on each set: its size, and how many of its documents are trained on."""
    for key, each in sets.items():
        yield from each.notes
        documents, split = each.split.num_documents, each.split
        per_token = split.document_bytes.sum() / len(split.tokens)
        duplicates = count_duplicates(split, corpora)
        also = f"; {duplicates:,} of them are also trained on, word for word" if duplicates else ""
        if each.unknown.num_unknown_bytes:
            also += f"; {each.unknown.describe()}"
        size = f"{len(split.tokens):,} tokens ({format_ratio(per_token)} bytes each)"
        yield f"{key}: {documents:,} documents, {size}{also}"


def count_duplicates(split: ValidationSplit, corpora: Sequence[TokenizedCorpus]) -> int | None:
    """Return how many documents of a set are also documents to train on, token for token.

    Only documents of the same lengths are read; None if they are too many.
    """
    documents = [split.tokens[begin:end] for begin, end in pairwise([0, *map(int, split.ends)])]
    lengths, found = np.unique([len(tokens) for tokens in documents]), set()
    for corpus in corpora:
        ends = np.asarray(corpus.train_ends)
        (candidates,) = np.nonzero(np.isin(np.diff(ends, prepend=0), lengths))
        if len(candidates) > MAX_COMPARED:
            return None
        for index in candidates:
            begin = int(ends[index - 1]) if index else 0
            found.add(corpus.train[begin : int(ends[index])].tobytes())
    return sum(tokens.tobytes() in found for tokens in documents)
