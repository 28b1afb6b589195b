"""Leave out documents that are too short or too long, or cut long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from growlm.data.sources.document_sources import DocumentReader, DocumentSource, ReaderPosition


class LengthLimits(DocumentSource):
    """The documents of a source within limits of length.

    Args:
        source: Source to read from.
        min_characters: Length below which a document is left out.
        max_characters: Length above which a document is left out or cut; None for no limit.
        truncate: Whether a longer document is cut instead of left out.
    """

    def __init__(
        self,
        source: DocumentSource,
        min_characters: int,
        max_characters: int | None,
        truncate: bool,
    ) -> None:
        self.source = source
        self.min_characters, self.max_characters = min_characters, max_characters
        self.truncate = truncate
        self.key, self.name = source.key, source.name
        self.libraries, self.notes = source.libraries, source.notes

    def read(self, position: ReaderPosition = None) -> DocumentReader:
        """Read the source from the beginning, or from another reader's position."""
        return _LimitedReader(self, self.source.read(position))

    def identity(self) -> Any:
        """Return the identity of the source, and the limits."""
        return self._with_limits(self.source.identity())

    def content_identity(self, hash_file: Callable[[Path], str]) -> Any:
        """Return the identity of the source's contents, and the limits."""
        return self._with_limits(self.source.content_identity(hash_file))

    def stat_signatures(self) -> dict[Path, Any]:
        """Return those of the source's files."""
        return self.source.stat_signatures()

    def _with_limits(self, identity: Any) -> list[Any]:
        return [
            "limited",
            identity,
            {
                "min_characters": self.min_characters,
                "max_characters": self.max_characters,
                "truncate": self.truncate,
            },
        ]


class _LimitedReader(DocumentReader):
    """A reader of another reader's documents within the limits of length."""

    def __init__(self, limits: LengthLimits, reader: DocumentReader) -> None:
        self.limits, self.reader = limits, reader
        self._counts = {"min_characters": 0} if limits.min_characters else {}
        self._long = "truncate" if limits.truncate else "max_characters"
        if limits.max_characters is not None:
            self._counts[self._long] = 0

    def __next__(self) -> str:
        limits = self.limits
        while True:
            text = next(self.reader)
            if len(text) < limits.min_characters:
                self._counts["min_characters"] += 1
            elif limits.max_characters is None or len(text) <= limits.max_characters:
                return text
            else:
                self._counts[self._long] += 1
                text = text[: limits.max_characters] if limits.truncate else ""
                if text and not text.isspace():
                    return text

    def position(self) -> ReaderPosition:
        """Return the other reader's position."""
        return self.reader.position()

    @property
    def fraction_read(self) -> float | None:
        """Fraction of the source that has been read."""
        return self.reader.fraction_read

    @property
    def selection(self) -> dict[str, int]:
        """Numbers of documents left out or cut, by the setting that did it, with those of the source."""
        return self.reader.selection | self._counts

    def close(self) -> None:
        """Close the other reader."""
        self.reader.close()
