"""Create document sources from the data settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from growlm.data.shuffling import compute_block_counts
from growlm.data.sources.document_sources import DocumentSource, EmbeddedStories, TextFiles
from growlm.data.sources.length_limits import LengthLimits
from growlm.runtime.errors import UserError

if TYPE_CHECKING:
    from growlm.config.schema import DataConfig, SourceConfig

SOURCE_KINDS = ("embedded", "text", "huggingface")


def open_sources(settings: DataConfig, seed: int) -> tuple[dict[str, DocumentSource], list[int]]:
    """Open the sources in the settings, and compute how many documents a mixture block takes from each.

    Raises:
        UserError: If a source cannot be read.
    """
    if settings.source != "mixture":
        return {
            "data": open_source(settings, "data", seed, settings.streaming)
        }, compute_block_counts({"data": 1.0})
    counts = compute_block_counts(
        {name: source.weight for name, source in settings.sources.items()}
    )
    sources = {
        name: open_source(source, f"data.sources.{name}", seed, settings.streaming)
        for name, source in settings.sources.items()
    }
    return sources, counts


def open_source(
    settings: SourceConfig,
    key: str,
    seed: int,
    streaming: bool,
    given: Collection[str] | None = None,
) -> DocumentSource:
    """Open one source within its limits of length, reading only what is needed to check that it is readable.

    Args:
        settings: Settings of the source.
        key: Their key, `data` or `data.sources.NAME`.
        seed: Seed of the embedded stories.
        streaming: Whether a dataset is read over the network on demand.
        given: Names of the settings that this source was given, for a note on what its files do not use; None for
            those that differ from the defaults.

    Raises:
        UserError: If it cannot be read.
    """
    source = _open_unlimited(settings, key, seed, streaming, given)
    if settings.min_characters == 0 and settings.max_characters is None:
        return source
    return LengthLimits(source, settings.min_characters, settings.max_characters, settings.truncate)


def _open_unlimited(
    settings: SourceConfig, key: str, seed: int, streaming: bool, given: Collection[str] | None
) -> DocumentSource:
    if settings.source == "embedded":
        return EmbeddedStories(seed, settings.documents, key)
    if settings.source == "text":
        if not settings.path:
            reason = "data=text needs a file, a folder or a glob"
            raise UserError(f"{key}.path", settings.path, reason)
        return TextFiles(
            settings.path,
            settings.column,
            settings.sample_by,
            key,
            delimiter=settings.delimiter,
            filters=settings.filter,
            given=given,
        )
    if settings.source == "huggingface":
        from growlm.data.sources.hub import HubDataset

        if not settings.name:
            reason = "data=huggingface needs a dataset's name, or a folder"
            raise UserError(f"{key}.name", settings.name, reason)
        return HubDataset(
            settings.name,
            settings.config,
            settings.split,
            settings.column,
            settings.revision,
            streaming,
            key,
            settings.filter,
        )
    raise UserError(f"{key}.source", settings.source, f"must be one of {', '.join(SOURCE_KINDS)}")
