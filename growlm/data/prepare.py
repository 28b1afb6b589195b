"""From the data settings to the samples of a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from growlm.data.corpus import TokenizedCorpus
from growlm.data.held_out import HeldOut, gather, streamed
from growlm.data.packing import HeldOutSamples, PackedSamples
from growlm.data.rows import MixedDocuments, ShuffledDocuments
from growlm.data.shuffling import mixture_counts
from growlm.data.sources import EmbeddedStories, Reader, Source, TextFiles
from growlm.data.streaming import StreamedDocuments, StreamedSamples
from growlm.data.token_cache import TokenCache
from growlm.data.tokenizers import Tokenizer
from growlm.data.tokenizing import TokenizedDocuments, token_type, tokenize
from growlm.errors import UserError

if TYPE_CHECKING:
    from growlm.config.schema import DataConfig, SourceConfig

SOURCES = ("embedded", "text", "huggingface")
TELL_EVERY_S = 0.2


class DataListener:
    """Is told of what takes long; does nothing."""

    def data_progress(self, task: str, share: float | None, note: str) -> None:
        """`share` of it is done (None: unknown); `note` says more."""

    def noted(self, text: str) -> None:
        """Something that a person may want to know."""


@dataclass(frozen=True, eq=False)
class RunData:
    """What a run reads.

    Attributes:
        train: Its samples, for ever.
        validation: The held-out ones.
        held_out: What those are made of.
        identity: Tells these documents, as they are tokenized, from others.
    """

    train: PackedSamples | StreamedSamples
    validation: HeldOutSamples
    held_out: HeldOut
    identity: str


def open_sources(settings: DataConfig, seed: int) -> tuple[dict[str, Source], list[int]]:
    """The sources that the settings name, and how many documents a block of their mixture takes from each.

    Raises:
        UserError: If one cannot be read.
    """
    if settings.source != "mixture":
        return {"data": open_source(settings, "data", seed, settings.streaming)}, mixture_counts(
            {"data": 1.0}
        )
    counts = mixture_counts({name: part.weight for name, part in settings.sources.items()})
    sources = {
        name: open_source(part, f"data.sources.{name}", seed, settings.streaming)
        for name, part in settings.sources.items()
    }
    return sources, counts


def open_source(settings: SourceConfig, key: str, seed: int, streaming: bool) -> Source:
    """One source; nothing but what says whether it can be read is read.

    Args:
        settings: Of the source.
        key: Their key, `data` or `data.sources.NAME`.
        seed: Which embedded stories.
        streaming: Whether a dataset is read over the network as it is needed.

    Raises:
        UserError: If it cannot be read.
    """
    if settings.source == "embedded":
        return EmbeddedStories(seed, settings.documents, key)
    if settings.source == "text":
        if not settings.path:
            allowed = "data=text needs a file, a folder or a glob"
            raise UserError(f"{key}.path", settings.path, allowed)
        return TextFiles(settings.path, settings.column, settings.sample_by, key)
    if settings.source == "huggingface":
        from growlm.data.hub import HubDataset

        if not settings.name:
            allowed = "data=huggingface needs a dataset's name, or a folder"
            raise UserError(f"{key}.name", settings.name, allowed)
        return HubDataset(
            settings.name,
            settings.config,
            settings.split,
            settings.column,
            settings.revision,
            streaming,
            key,
        )
    raise UserError(f"{key}.source", settings.source, f"must be one of {', '.join(SOURCES)}")


def prepare_data(
    settings: DataConfig,
    tokenizer: Tokenizer,
    source: Source,
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
    every = settings.validation_every
    if every < 2:
        raise UserError("data.validation_every", every, "must be at least 2")
    cache = TokenCache(
        Path(settings.cache).expanduser().absolute(),
        round(settings.cache_gb * 1e9),
        listener.noted,
    )

    def documents() -> Iterator[TokenizedDocuments]:
        reader = source.read()
        yield from _told(tokenize(reader, tokenizer), reader, source, listener)
        reader.close()

    corpus = cache.corpus(
        {"documents": source.content(cache.digest), "tokenizer": _encoding(tokenizer)},
        token_type(tokenizer),
        every,
        documents,
    )
    if corpus.train_documents == 0:
        raise UserError(source.key, source.name, "holds nothing but white space")
    return corpus


def open_data(
    settings: DataConfig,
    tokenizer: Tokenizer,
    sources: dict[str, Source],
    counts: Sequence[int],
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
    every, window = settings.validation_every, settings.shuffle_window
    if settings.streaming:
        streams = [StreamedDocuments(s, tokenizer, window, every, seed) for s in sources.values()]

        def skipping(done: int, total: int) -> None:
            note = f"{done:,} of {total:,} samples"
            listener.data_progress("reading up to where the run stopped", done / total, note)

        train: PackedSamples | StreamedSamples = StreamedSamples(
            streams, counts, sequence_length, seed, skipping
        )
        parts = [streamed(source, tokenizer, every) for source in sources.values()]
        held_out = gather(parts, counts, seed, tokenizer, enough)
        identity = [s.identity() for s in sources.values()] + [_encoding(tokenizer)]
    else:
        corpora = [prepare_data(settings, tokenizer, s, listener) for s in sources.values()]
        rows = [ShuffledDocuments(c.train, c.train_ends, window, seed) for c in corpora]
        row = rows[0] if len(rows) == 1 else MixedDocuments(rows, counts, seed)
        train = PackedSamples(row, sequence_length)
        held_out = _held_out(corpora, counts, seed, tokenizer, enough)
        identity = [corpus.digest for corpus in corpora]
        for source, corpus in zip(sources.values(), corpora, strict=True):
            listener.noted(_described(source, corpus))
    _check_held_out(settings, held_out)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return RunData(train, HeldOutSamples(held_out.tokens, sequence_length), held_out, digest)


def _held_out(
    corpora: Sequence[TokenizedCorpus],
    counts: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
    enough: int,
) -> HeldOut:
    """All that is held out of one corpus; of a mixture, which would have to be put together in memory, enough."""
    if len(corpora) == 1:
        (corpus,) = corpora
        return HeldOut(corpus.validation, corpus.validation_ends, corpus.validation_sizes)
    return gather([corpus.held_out() for corpus in corpora], counts, seed, tokenizer, enough)


def _described(source: Source, corpus: TokenizedCorpus) -> str:
    return (
        f"{source.name}: {corpus.train_documents:,} documents to train on, {len(corpus.train):,} tokens "
        f"({corpus.train_bytes / max(1, len(corpus.train)):.2f} bytes each); "
        f"{corpus.validation_documents:,} held out"
    )


def _check_held_out(settings: DataConfig, held_out: HeldOut) -> None:
    if held_out.num_documents == 0:
        remedy = (
            "more data.documents" if settings.source == "embedded" else "a finer data.sample_by"
        )
        allowed = f"holds out none of the documents; use a smaller value or {remedy}"
        raise UserError("data.validation_every", settings.validation_every, allowed)


def _encoding(tokenizer: Tokenizer) -> list[object]:
    """What the tokens of a text depend on."""
    return [tokenizer.fingerprint, list(tokenizer.begin_of_text), tokenizer.end_of_text]


def _told(
    batches: Iterator[TokenizedDocuments], reader: Reader, source: Source, listener: DataListener
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
        if elapsed - told >= TELL_EVERY_S:
            told = elapsed
            note = f"{documents:,} documents, {size / 1e6:,.0f} MB, {size / elapsed / 1e6:.1f} MB/s"
            listener.data_progress(task, reader.share_read, note)
