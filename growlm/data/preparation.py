"""Tokenize or stream a run's documents, and cut them into training and validation samples."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growlm.data.corpus import TokenizedCorpus
from growlm.data.evaluation_sets import (
    VALIDATION,
    EvaluationSet,
    describe_evaluation_sets,
    name_evaluation_sets,
    open_evaluation_sets,
)
from growlm.data.own_data import FixedSamples, OwnSamples
from growlm.data.packing import PackedSamples, ValidationSamples
from growlm.data.sources.document_sources import DocumentReader, DocumentSource
from growlm.data.streaming import StreamedDocuments, StreamedSamples
from growlm.data.token_stream import MixedDocuments, ShuffledDocuments
from growlm.data.tokenization.parallel_tokenization import (
    TokenizedDocuments,
    loses_text,
    token_dtype,
    tokenize_documents,
)
from growlm.data.tokenization.token_cache import TokenCache
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.unknown_limit import UnknownTally
from growlm.data.validation_split import (
    ValidationSplit,
    collect_validation_split,
    stream_validation_documents,
)
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_bytes, format_ratio

if TYPE_CHECKING:
    from growlm.config.schema import DataConfig

REPORT_INTERVAL_S = 0.2
UNKNOWN_FORMAT = 1
"""Version of how unknown text is counted; changing it invalidates the entries of tokenizers that may lose text."""
NO_DOCUMENT = 2**62
"""Interval of held-out documents that is longer than any text."""


class DataListener:
    """The interface for progress reports while data is prepared; these methods do nothing."""

    def data_progress(self, task: str, fraction: float | None, note: str) -> None:
        """Report progress: the done `fraction` of a task (None if unknown) and a `note` with details."""

    def message_logged(self, text: str) -> None:
        """Report a message for the user."""


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run.

    Attributes:
        train: Endless training samples.
        validation: Validation samples.
        validation_split: Documents that the validation samples are cut from; None for data of the user's own.
        fingerprint: Hash that identifies these documents as tokenized.
        newest_inode_change: Latest change of any streamed file's inode (by editing, moving or copying), in
            nanoseconds. Streamed files are identified by name, size and modification time; a text that was edited
            in place and then given its old time shows only here. None if `fingerprint` covers the contents.
        evaluation_sets: Further texts to evaluate on, by name.
        evaluation_fingerprints: Fingerprint of each text that is named to evaluate on, by its key; that of
            `data.validation` among them.
    """

    train: PackedSamples | StreamedSamples | OwnSamples
    validation: ValidationSamples | FixedSamples
    validation_split: ValidationSplit | None
    fingerprint: str
    newest_inode_change: int | None = None
    evaluation_sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    evaluation_fingerprints: Mapping[str, str] = field(default_factory=dict)


def tokenize_source(
    settings: DataConfig,
    tokenizer: Tokenizer,
    source: DocumentSource,
    listener: DataListener | None = None,
) -> TokenizedCorpus:
    """Tokenize all documents of one source, or load them from the cache on disk.

    Args:
        settings: Data settings, with the cache folder and the validation split.
        tokenizer: Tokenizer to encode the documents with.
        source: Source of the documents.
        listener: Receiver of progress reports.

    Raises:
        UserError: If a document cannot be read, none is held out, or the tokenizer has no token for more of the
            text than `settings.max_unknown_fraction`.
        DiskError: If the cache cannot be written.
    """
    listener = listener or DataListener()
    _report_notes([source], listener)
    cache = _make_token_cache(settings, listener)
    corpus = _load_or_tokenize(cache, settings, tokenizer, source, listener)
    cache.evict_to_limit()
    _tally_unknown_text(corpus).check(settings.max_unknown_fraction, source.name)
    return corpus


def open_run_data(
    settings: DataConfig,
    tokenizer: Tokenizer,
    sources: dict[str, DocumentSource],
    block_counts: Sequence[int],
    *,
    seed: int,
    sequence_length: int,
    validation_samples: int,
    listener: DataListener,
) -> RunData:
    """Open the training and validation samples of a run.

    Args:
        settings: Data settings.
        tokenizer: Tokenizer to encode the documents with.
        sources: Sources from `open_sources`.
        block_counts: Documents that every block of the mixture takes from each source, from `open_sources`.
        seed: Seed of the documents' order.
        sequence_length: Number of positions a model sees.
        validation_samples: Largest number of validation samples that will be read.
        listener: Receiver of progress reports.

    Raises:
        UserError: If a document cannot be read, too few are held out, or the tokenizer has no token for more of
            a source's text than `settings.max_unknown_fraction`.
        DiskError: If the cache cannot be written.
    """
    min_tokens = validation_samples * sequence_length + 1
    evaluation = open_evaluation_sets(
        settings,
        tokenizer,
        seed=seed,
        sequence_length=sequence_length,
        max_samples=validation_samples,
    )
    own_validation = evaluation.get(VALIDATION)
    source_list = list(sources.values())
    _report_notes(source_list, listener)
    train: PackedSamples | StreamedSamples
    identity: list[Any]
    newest_inode_change = None
    corpora: list[TokenizedCorpus] = []
    if settings.streaming:
        train = _open_streamed_samples(
            settings, tokenizer, source_list, block_counts, seed, sequence_length, listener
        )
        if own_validation is None:
            tallies = [UnknownTally() for _ in source_list]
            validation_documents = [
                stream_validation_documents(source, tokenizer, settings.validation_every, tally)
                for source, tally in zip(source_list, tallies, strict=True)
            ]
            validation_split = collect_validation_split(
                validation_documents, block_counts, seed, tokenizer, min_tokens
            )
            for source, tally in zip(source_list, tallies, strict=True):
                name = f"the held-out documents of {source.name}"
                tally.check(settings.max_unknown_fraction, name)
                if tally.num_unknown_bytes:
                    listener.message_logged(f"{name}: {tally.describe()}")
        identity = [
            _cache_key_parts(source.identity(), source, tokenizer) for source in source_list
        ]
        signatures = [
            signature
            for source in source_list
            for signature in source.stat_signatures().values()
            if signature
        ]
        newest_inode_change = max((signature[2] for signature in signatures), default=None)
    else:
        cache = _make_token_cache(settings, listener)
        corpora = [
            _load_or_tokenize(cache, settings, tokenizer, source, listener)
            for source in source_list
        ]
        cache.evict_to_limit()  # only now, so that no source of a run evicts another
        for source, corpus in zip(source_list, corpora, strict=True):
            listener.message_logged(_describe_corpus(source, corpus))
            _tally_unknown_text(corpus).check(settings.max_unknown_fraction, source.name)
        streams = [
            ShuffledDocuments(corpus.train, corpus.train_ends, settings.shuffle_window, seed)
            for corpus in corpora
        ]
        stream = streams[0] if len(streams) == 1 else MixedDocuments(streams, block_counts, seed)
        train = PackedSamples(stream, sequence_length)
        if own_validation is None:
            validation_split = _open_validation_split(
                corpora, block_counts, seed, tokenizer, min_tokens
            )
        identity = [corpus.digest for corpus in corpora]
    if own_validation is not None:
        validation_split = own_validation.split
    _check_validation_split(settings, validation_split)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    validation = ValidationSamples(validation_split.tokens, sequence_length)
    for text in describe_evaluation_sets(evaluation, corpora):
        listener.message_logged(text)
    return RunData(
        train,
        validation,
        validation_split,
        digest,
        newest_inode_change,
        name_evaluation_sets(evaluation),
        {key: one.fingerprint for key, one in evaluation.items()},
    )


def _hold_out_every(settings: DataConfig) -> int:
    """Return every how many documents one is held out: none is where a text to validate on is named."""
    return NO_DOCUMENT if settings.validation.is_given else settings.validation_every


def _make_token_cache(settings: DataConfig, listener: DataListener) -> TokenCache:
    folder = Path(settings.cache).expanduser().absolute()
    return TokenCache(folder, round(settings.cache_gb * 1e9), listener.message_logged)


def _load_or_tokenize(
    cache: TokenCache,
    settings: DataConfig,
    tokenizer: Tokenizer,
    source: DocumentSource,
    listener: DataListener,
) -> TokenizedCorpus:
    validation_every = _hold_out_every(settings)
    if validation_every < 2:
        raise UserError("data.validation_every", validation_every, "must be at least 2")
    signatures = source.stat_signatures()  # before the checksums are taken
    content = source.content_identity(cache.digest)

    selection: dict[str, int] = {}

    def documents() -> Iterator[TokenizedDocuments]:
        reader = source.read()
        is_empty = True
        for batch in _report_progress(
            tokenize_documents(reader, tokenizer), reader, source, listener
        ):
            is_empty = False
            yield batch
        reader.close()
        _check_unchanged(source, signatures, content, cache)
        selection.update(reader.selection)
        if is_empty:
            left_out = describe_selection(selection, source.key)
            reason = (
                f"no document is left ({left_out})" if left_out else "contains only white space"
            )
            raise UserError(source.key, source.name, reason)

    earlier = None
    if (before := source.earlier_content_identity(cache.digest)) is not None:
        identity, is_same = before
        earlier = (_cache_key_parts(identity, source, tokenizer), is_same)
    key_parts = _cache_key_parts(content, source, tokenizer)
    if loses_text(tokenizer):  # an entry of an earlier version does not say how much
        key_parts["unknown"] = UNKNOWN_FORMAT
    return cache.get_or_create(
        key_parts,
        token_dtype(tokenizer),
        validation_every,
        documents,
        record=lambda: {"selection": selection} if selection else {},
        earlier=earlier,
    )


def _report_notes(sources: Sequence[DocumentSource], listener: DataListener) -> None:
    for source in sources:
        for note in source.notes:
            listener.message_logged(note)


def describe_selection(selection: Mapping[str, int], key: str) -> str:
    """Return how many documents each setting left out or cut, such as `3 left out by data.filter`.

    Args:
        selection: Numbers by setting, from `DocumentReader.selection`.
        key: Key of the source's settings.
    """
    parts = [
        f"{count:,} cut at {key}.max_characters"
        if name == "truncate"
        else f"{count:,} left out by {key}.{name}"
        for name, count in selection.items()
    ]
    return ", ".join(parts)


def _check_unchanged(
    source: DocumentSource, signatures: dict[Path, Any], content: Any, cache: TokenCache
) -> None:
    """Check that the files still hold what the checksums in the cache key were taken of.

    Raises:
        UserError: If they do not. A file that was only renamed or got another mode has another signature but the
            same contents, and passes.
    """
    current = source.stat_signatures()
    changed = [path for path, signature in signatures.items() if current[path] != signature]
    if changed and (None in current.values() or source.content_identity(cache.digest) != content):
        reason = "changed while it was tokenized; start again once the file is complete"
        raise UserError(f"{source.key}.path", changed[0], reason)


def _open_streamed_samples(
    settings: DataConfig,
    tokenizer: Tokenizer,
    sources: Sequence[DocumentSource],
    counts: Sequence[int],
    seed: int,
    sequence_length: int,
    listener: DataListener,
) -> StreamedSamples:
    def report_skipping(done: int, total: int) -> None:
        note = f"{done:,} of {total:,} samples"
        listener.data_progress("skipping to where the run stopped", done / total, note)

    window, validation_every = settings.shuffle_window, _hold_out_every(settings)
    streams = [
        StreamedDocuments(source, tokenizer, window, validation_every, seed) for source in sources
    ]
    return StreamedSamples(streams, counts, sequence_length, seed, report_skipping)


def _open_validation_split(
    corpora: Sequence[TokenizedCorpus],
    counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    min_tokens: int,
) -> ValidationSplit:
    """Return the whole validation split of one corpus, or enough of a mixture's.

    That of a mixture has to be assembled in memory, so only `min_tokens` are taken.
    """
    if len(corpora) == 1:
        (corpus,) = corpora
        return ValidationSplit(
            corpus.validation, corpus.validation_ends, corpus.validation_encoded_bytes
        )
    return collect_validation_split(
        [corpus.iter_validation_documents() for corpus in corpora],
        counts,
        seed,
        tokenizer,
        min_tokens,
    )


def _describe_corpus(source: DocumentSource, corpus: TokenizedCorpus) -> str:
    selection = describe_selection(corpus.selection, source.key)
    return (
        f"{source.name}: {corpus.train_documents:,} documents to train on, {len(corpus.train):,} tokens "
        f"({format_ratio(corpus.train_bytes / max(1, len(corpus.train)))} bytes each); "
        f"{corpus.validation_documents:,} held out"
        + (f"; {selection}" if selection else "")
        + (
            f"; {tally.describe()}"
            if (tally := _tally_unknown_text(corpus)).num_unknown_bytes
            else ""
        )
    )


def _tally_unknown_text(corpus: TokenizedCorpus) -> UnknownTally:
    num_bytes = corpus.train_bytes + corpus.validation_bytes
    return UnknownTally(num_bytes, corpus.num_unknown_bytes, Counter(corpus.unknown_parts))


def _check_validation_split(settings: DataConfig, validation_split: ValidationSplit) -> None:
    if validation_split.num_documents == 0:
        remedy = (
            "more data.documents" if settings.source == "embedded" else "a finer data.sample_by"
        )
        reason = f"holds out none of the documents; use a smaller value or {remedy}"
        raise UserError("data.validation_every", settings.validation_every, reason)


def _cache_key_parts(
    documents: Any, source: DocumentSource, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return what a source's tokens depend on: documents, reading libraries and tokenizer."""
    encoding = [tokenizer.fingerprint, list(tokenizer.bos_token_ids), tokenizer.eos_token_id]
    names = [name for name in (*source.libraries, tokenizer.library) if name]
    libraries = {name: version(name) for name in names}
    return {"documents": documents, "tokenizer": encoding, "libraries": libraries}


def _report_progress(
    batches: Iterator[TokenizedDocuments],
    reader: DocumentReader,
    source: DocumentSource,
    listener: DataListener,
) -> Iterator[TokenizedDocuments]:
    """Yield the batches, reporting progress and speed to the listener."""
    task = f"tokenizing {source.name}"
    start, last_report = time.perf_counter(), 0.0
    num_documents = num_bytes = 0
    for batch in batches:
        yield batch
        num_documents += len(batch.lengths)
        num_bytes += int(batch.num_bytes.sum())
        elapsed = time.perf_counter() - start
        if elapsed - last_report >= REPORT_INTERVAL_S:
            last_report = elapsed
            read, speed = format_bytes(num_bytes), format_bytes(num_bytes / elapsed)
            note = f"{num_documents:,} documents, {read}, {speed}/s"
            listener.data_progress(task, reader.fraction_read, note)
