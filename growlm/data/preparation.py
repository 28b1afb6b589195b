"""From the data settings to the samples of a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growlm.data.corpus import TokenizedCorpus
from growlm.data.packing import PackedSamples, ValidationSamples
from growlm.data.sources.document_sources import DocumentReader, DocumentSource
from growlm.data.streaming import StreamedDocuments, StreamedSamples
from growlm.data.token_stream import MixedDocuments, ShuffledDocuments
from growlm.data.tokenization.parallel_tokenization import (
    TokenizedDocuments,
    token_dtype,
    tokenize_documents,
)
from growlm.data.tokenization.token_cache import TokenCache
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.validation_split import (
    ValidationSplit,
    collect_validation_split,
    stream_validation_documents,
)
from growlm.runtime.errors import UserError

if TYPE_CHECKING:
    from growlm.config.schema import DataConfig

REPORT_INTERVAL_S = 0.2


class DataListener:
    """Is told of what takes long; does nothing."""

    def data_progress(self, task: str, fraction: float | None, note: str) -> None:
        """`share` of it is done (None: unknown); `note` says more."""

    def message_logged(self, text: str) -> None:
        """Something that a person may want to know."""


@dataclass(frozen=True, eq=False)
class RunData:
    """What a run reads.

    Attributes:
        train: Its samples, for ever.
        validation: The held-out ones.
        held_out: What those are made of.
        identity: Tells these documents, as they are tokenized, from others.
        newest_inode_change: When the last of the streamed files was changed, moved or copied, in nanoseconds. They
            are told by name, size and time of change; a text that was edited in place and given its old time again
            shows only here. None where `identity` goes by contents.
    """

    train: PackedSamples | StreamedSamples
    validation: ValidationSamples
    validation_split: ValidationSplit
    fingerprint: str
    newest_inode_change: int | None = None


def tokenize_source(
    settings: DataConfig,
    tokenizer: Tokenizer,
    source: DocumentSource,
    listener: DataListener | None = None,
) -> TokenizedCorpus:
    """All documents of one source, tokenized: from the cache on disk, or now.

    Args:
        settings: What is held out, and where the cache is.
        tokenizer: What encodes them.
        source: Where they come from.
        listener: Is told of the progress.

    Raises:
        UserError: If a document cannot be read, or none is held out.
        DiskError: If the cache cannot be written.
    """
    listener = listener or DataListener()
    cache = _make_token_cache(settings, listener)
    corpus = _load_or_tokenize(cache, settings, tokenizer, source, listener)
    cache.evict_to_limit()
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
    """The samples of a run.

    Args:
        settings: Of the data.
        tokenizer: What encodes the documents.
        sources: From `open_sources`.
        counts: Likewise.
        seed: Of the documents' order.
        sequence_length: Number of positions a model sees.
        validation_samples: Held-out samples that will be asked for, at most.
        listener: Is told of the progress.

    Raises:
        UserError: If a document cannot be read, or too few are held out.
        DiskError: If the cache cannot be written.
    """
    enough = validation_samples * sequence_length + 1
    parts = list(sources.values())
    train: PackedSamples | StreamedSamples
    identity: list[Any]
    newest_inode_change = None
    if settings.streaming:
        train = _open_streamed_samples(
            settings, tokenizer, parts, block_counts, seed, sequence_length, listener
        )
        texts = [
            stream_validation_documents(source, tokenizer, settings.validation_every)
            for source in parts
        ]
        held_out = collect_validation_split(texts, block_counts, seed, tokenizer, enough)
        identity = [_cache_key_parts(source.identity(), source, tokenizer) for source in parts]
        stamps = [stamp for source in parts for stamp in source.stat_signatures().values() if stamp]
        newest_inode_change = max((stamp[2] for stamp in stamps), default=None)
    else:
        cache = _make_token_cache(settings, listener)
        corpora = [
            _load_or_tokenize(cache, settings, tokenizer, source, listener) for source in parts
        ]
        cache.evict_to_limit()  # only now: no source of a run goes to make room for another
        for source, corpus in zip(parts, corpora, strict=True):
            listener.message_logged(_describe_corpus(source, corpus))
        rows = [
            ShuffledDocuments(corpus.train, corpus.train_ends, settings.shuffle_window, seed)
            for corpus in corpora
        ]
        row = rows[0] if len(rows) == 1 else MixedDocuments(rows, block_counts, seed)
        train = PackedSamples(row, sequence_length)
        held_out = _open_validation_split(corpora, block_counts, seed, tokenizer, enough)
        identity = [corpus.digest for corpus in corpora]
    _check_validation_split(settings, held_out)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    validation = ValidationSamples(held_out.tokens, sequence_length)
    return RunData(train, validation, held_out, digest, newest_inode_change)


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
    """See `prepare_data`."""
    every = settings.validation_every
    if every < 2:
        raise UserError("data.validation_every", every, "must be at least 2")
    stamps = source.stat_signatures()  # before the checksums are taken
    content = source.content_identity(cache.digest)

    def documents() -> Iterator[TokenizedDocuments]:
        reader = source.read()
        empty = True
        for batch in _report_progress(
            tokenize_documents(reader, tokenizer), reader, source, listener
        ):
            empty = False
            yield batch
        reader.close()
        _check_unchanged(source, stamps, content, cache)
        if empty:
            raise UserError(source.key, source.name, "holds nothing but white space")

    return cache.get_or_create(
        _cache_key_parts(content, source, tokenizer),
        token_dtype(tokenizer),
        every,
        documents,
    )


def _check_unchanged(
    source: DocumentSource, stamps: dict[Path, Any], content: Any, cache: TokenCache
) -> None:
    """Check that the files hold what they held before they were read, whose checksums name the entry.

    Raises:
        UserError: If not. A file that was only renamed or given another mode has other stamps, but is no other.
    """
    now = source.stat_signatures()
    changed = [path for path, stamp in stamps.items() if now[path] != stamp]
    if changed and (None in now.values() or source.content_identity(cache.digest) != content):
        allowed = "changed while it was tokenized; begin again once it is written to the end"
        raise UserError(f"{source.key}.path", changed[0], allowed)


def _open_streamed_samples(
    settings: DataConfig,
    tokenizer: Tokenizer,
    sources: Sequence[DocumentSource],
    counts: Sequence[int],
    seed: int,
    sequence_length: int,
    listener: DataListener,
) -> StreamedSamples:
    def skipping(done: int, total: int) -> None:
        note = f"{done:,} of {total:,} samples"
        listener.data_progress("reading up to where the run stopped", done / total, note)

    window, every = settings.shuffle_window, settings.validation_every
    streams = [StreamedDocuments(source, tokenizer, window, every, seed) for source in sources]
    return StreamedSamples(streams, counts, sequence_length, seed, skipping)


def _open_validation_split(
    corpora: Sequence[TokenizedCorpus],
    counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    enough: int,
) -> ValidationSplit:
    """All that is held out of one corpus; of a mixture, which would have to be put together in memory, enough."""
    if len(corpora) == 1:
        (corpus,) = corpora
        return ValidationSplit(
            corpus.validation, corpus.validation_ends, corpus.validation_document_bytes
        )
    return collect_validation_split(
        [corpus.iter_validation_documents() for corpus in corpora], counts, seed, tokenizer, enough
    )


def _describe_corpus(source: DocumentSource, corpus: TokenizedCorpus) -> str:
    return (
        f"{source.name}: {corpus.train_documents:,} documents to train on, {len(corpus.train):,} tokens "
        f"({corpus.train_bytes / max(1, len(corpus.train)):.2f} bytes each); "
        f"{corpus.validation_documents:,} held out"
    )


def _check_validation_split(settings: DataConfig, held_out: ValidationSplit) -> None:
    if held_out.num_documents == 0:
        remedy = (
            "more data.documents" if settings.source == "embedded" else "a finer data.sample_by"
        )
        allowed = f"holds out none of the documents; use a smaller value or {remedy}"
        raise UserError("data.validation_every", settings.validation_every, allowed)


def _cache_key_parts(
    documents: Any, source: DocumentSource, tokenizer: Tokenizer
) -> dict[str, Any]:
    """What the tokens of a source depend on: its documents, what reads them and what encodes them."""
    encoding = [tokenizer.fingerprint, list(tokenizer.bos_token_ids), tokenizer.eos_token_id]
    libraries = {name: version(name) for name in (*source.libraries, tokenizer.library)}
    return {"documents": documents, "tokenizer": encoding, "libraries": libraries}


def _report_progress(
    batches: Iterator[TokenizedDocuments],
    reader: DocumentReader,
    source: DocumentSource,
    listener: DataListener,
) -> Iterator[TokenizedDocuments]:
    """The batches, while the listener hears how far and how fast it goes."""
    task = f"tokenizing {source.name}"
    start, told = time.perf_counter(), 0.0
    documents = size = 0
    for batch in batches:
        yield batch
        documents += len(batch.lengths)
        size += int(batch.num_bytes.sum())
        elapsed = time.perf_counter() - start
        if elapsed - told >= REPORT_INTERVAL_S:
            told = elapsed
            note = f"{documents:,} documents, {size / 1e6:,.0f} MB, {size / elapsed / 1e6:.1f} MB/s"
            listener.data_progress(task, reader.fraction_read, note)
