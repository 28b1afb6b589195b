"""Datasets from the Hugging Face hub, or from folders with the same layout, read with the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

from growlm.data.sources.document_sources import DocumentReader, DocumentSource, ReaderPosition
from growlm.data.sources.hub_access import (
    is_connection_error,
    offline_if_unreachable,
    suppress_hub_output,
)
from growlm.runtime.errors import RunError, UserError

BATCH_ROWS = 1000
DATASET_LIBRARIES = ("datasets", "pyarrow", "zlib")
"""Packages whose errors come from the data that is read, not from growlm."""
OFFLINE_ADVICE = (
    "use data=text data.path=FILE or data=embedded, which need no network; or load the dataset once without "
    "data.streaming on a machine that reaches the hub, copy its HF_HOME folder and set HF_HUB_OFFLINE=1"
)


class HubDataset(DocumentSource):
    """One split of a Hugging Face dataset.

    Args:
        name: Dataset on the hub (`roneneldan/TinyStories`), or a folder with files in it.
        config: Dataset configuration; None for the only or default one.
        split: Split, such as `train`, or a part of one, such as `train[:10%]` (not when streaming).
        column: Column that holds the text.
        revision: Commit or tag on the hub; None for the newest.
        streaming: Whether to read over the network on demand instead of downloading everything first.
        key: Setting that describes the source, for error messages.

    Raises:
        UserError: If the dataset, configuration, split or column does not exist, or the hub cannot be reached and
            the dataset is not in the local cache.
    """

    libraries = ("datasets", "pyarrow")

    def __init__(
        self,
        name: str,
        config: str | None,
        split: str,
        column: str,
        revision: str | None = None,
        streaming: bool = False,
        key: str = "data",
    ) -> None:
        self.name, self.config, self.split = name, config, split
        self.column, self.revision, self.streaming, self.key = column, revision, streaming, key
        self._builder: Any = None
        self.dataset = self._load()
        self._check_column()

    def read(self, position: ReaderPosition = None) -> DocumentReader:
        """Read from the first row on, or from another reader's position."""
        return (
            _StreamReader(self, position) if self.streaming else _TableReader(self, position or 0)
        )

    def identity(self) -> Any:
        """Return the dataset, its configuration and version and, for the hub, the commit.

        This is what the library's own cache uses as its key.
        """
        import datasets

        cache = os.path.relpath(self._builder.cache_dir, datasets.config.HF_DATASETS_CACHE)
        return ["huggingface", cache, self.split, self.column]

    def open_stream(self) -> Any:
        """Open the split as a stream; every reader needs its own, since a stream keeps its position."""
        rows = self._builder.as_streaming_dataset(split=self.split)
        return rows.select_columns([self.column]) if rows.column_names else rows

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn exceptions of the libraries into an error about the faulty setting."""
        try:
            yield
            return
        except (UserError, RunError):
            raise
        except Exception as error:  # each library raises its own types
            key, reason = _find_faulty_setting(error)
        # Raised outside the handler, so that a one-sentence error does not carry a library's traceback.
        raise UserError(f"{self.key}.{key}", getattr(self, key), reason)

    def _load(self) -> Any:
        import datasets

        name = str(Path(self.name).expanduser()) if Path(self.name).expanduser().is_dir() else None
        if name is None:
            self._check_name()
        hub_name = self.name if name is None else None
        offline = offline_if_unreachable(datasets, hub_name, self.revision)
        with self.translate_errors(), suppress_hub_output(datasets), offline:
            self._builder = datasets.load_dataset_builder(
                name or self.name, self.config, revision=self.revision
            )
            if self.streaming:
                return self._builder.as_streaming_dataset(split=self.split)
            self._builder.download_and_prepare()
            return self._builder.as_dataset(split=self.split)

    def _check_name(self) -> None:
        parts = self.name.split("/")
        if len(parts) != 2 or not all(parts) or self.name.startswith((".", "~")):
            reason = "is neither a local folder nor a dataset name (OWNER/NAME)"
            raise UserError(f"{self.key}.name", self.name, reason)

    def _check_column(self) -> None:
        with self.translate_errors():
            columns = self.dataset.column_names or list(next(iter(self.dataset), {}))
        if self.column not in columns:
            names = ", ".join(columns)
            raise UserError(
                f"{self.key}.column", self.column, f"no such column; its columns are: {names}"
            )


def _find_faulty_setting(error: Exception) -> tuple[str, str]:
    """Return the setting that a library's error is about, and a message.

    Raises:
        Exception: The error itself, if it is not about a setting.
    """
    import datasets

    text = " ".join(str(error).split())
    if is_connection_error(error):
        return (
            "name",
            f"the hub cannot be reached and the dataset is not in the local cache; {OFFLINE_ADVICE}",
        )
    if isinstance(error, ValueError) and ("BuilderConfig" in text or "onfig name is" in text):
        return "config", text
    if isinstance(error, ValueError) and "split" in text.lower():
        return "split", text
    data_errors = (OSError, EOFError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    if (
        isinstance(error, data_errors)
        or type(error).__module__.partition(".")[0] in DATASET_LIBRARIES
    ):
        cause = error.__cause__
        return "name", f"cannot be loaded: {text}{f' ({cause})' if cause else ''}"
    raise error


class _TableReader(DocumentReader):
    """A reader of a prepared dataset on disk; its position is a row index."""

    def __init__(self, source: HubDataset, first: int) -> None:
        self.source, self.row_index = source, index(first)
        self._texts = self._read()

    def __next__(self) -> str:
        return next(self._texts)

    def position(self) -> ReaderPosition:
        """Return the index of the next row."""
        return self.row_index

    @property
    def fraction_read(self) -> float:
        """Fraction of the rows that has been read."""
        return self.row_index / max(1, len(self.source.dataset))

    def _read(self) -> Iterator[str]:
        rows = self.source.dataset.select_columns([self.source.column])
        for start in range(self.row_index, len(rows), BATCH_ROWS):
            with self.source.translate_errors():
                texts = rows[start : start + BATCH_ROWS][self.source.column]
            for text in texts:
                self.row_index += 1
                if _is_text(text, self.source):
                    yield text


class _StreamReader(DocumentReader):
    """A reader of a streamed dataset; its position is the library's own stream state."""

    def __init__(self, source: HubDataset, position: ReaderPosition) -> None:
        self.source, self._start = source, position
        self._rows = source.open_stream()
        if position is not None:
            self._rows.load_state_dict(position)
        self._texts = self._read()
        self._has_read = False

    def __next__(self) -> str:
        text = next(self._texts)
        self._has_read = True
        return text

    def position(self) -> ReaderPosition:
        """Return the library's state (shard and row); None at the beginning."""
        # Before its first row, the library does not return the state that was loaded into it.
        return self._rows.state_dict() if self._has_read else self._start

    def _read(self) -> Iterator[str]:
        with self.source.translate_errors():
            try:
                for row in self._rows:
                    text = row[self.source.column]
                    if _is_text(text, self.source):
                        yield text
            except Exception as error:
                if not isinstance(error, OSError) and not is_connection_error(error):
                    raise  # an error in the data, not in the connection
                what = f"can no longer be read ({type(error).__name__}: {error})"
                raise RunError(f"{self.source.name} {what}; the run can be resumed") from error


def _is_text(value: Any, source: HubDataset) -> bool:
    if value is None:
        return False
    if not isinstance(value, str):
        what = f"holds a {type(value).__name__}, not text"
        raise UserError(f"{source.key}.column", source.column, what)
    return bool(value) and not value.isspace()
