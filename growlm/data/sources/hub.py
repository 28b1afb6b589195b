"""Datasets from the Hugging Face hub, or from folders with the same layout, read with the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

from growlm.data.sources.csv_datasets import DUPLICATE_SUFFIX, load_builder
from growlm.data.sources.document_sources import DocumentReader, DocumentSource, ReaderPosition
from growlm.data.sources.hub_access import (
    capture_failed_files,
    is_connection_error,
    offline_if_unreachable,
    suppress_hub_output,
)
from growlm.data.sources.row_values import MissingColumnError, RowFilter, find_root, get_value
from growlm.data.sources.text_files import list_files, note_left_out
from growlm.runtime.errors import RunError, UserError

BATCH_ROWS = 1000
DATASET_LIBRARIES = ("datasets", "pyarrow", "zlib")
"""Packages whose errors come from the data that is read, not from growlm."""
DATASET_CARDS = ("README.md", "dataset_info.json", "dataset_infos.json")
"""Files beside a dataset that describe it."""
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
        column: Column that holds the text; a dotted path (`messages.0.content`) leads inside one.
        revision: Commit or tag on the hub; None for the newest.
        streaming: Whether to read over the network on demand instead of downloading everything first.
        key: Setting that describes the source, for error messages.
        filters: Conditions on the rows (see `RowFilter`).

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
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.config, self.split = name, config, split
        self.column, self.revision, self.streaming, self.key = column, revision, streaming, key
        self.filters = filters or {}
        self.row_filter = RowFilter(self.filters, f"{key}.filter") if self.filters else None
        self._builder: Any = None
        self.dataset = self._load()
        self.columns = self._find_columns()

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
        more = [{"filter": self.filters}] if self.filters else []
        return ["huggingface", cache, self.split, self.column, *more]

    def open_stream(self) -> Any:
        """Open the split as a stream; every reader needs its own, since a stream keeps its position."""
        rows = self._builder.as_streaming_dataset(split=self.split)
        return rows.select_columns(self.columns) if rows.column_names else rows

    def get_text(self, row: Mapping[str, Any]) -> str | None:
        """Return a row's text; None if it has none, or only white space.

        Raises:
            UserError: If the column holds something else.
        """
        try:
            value = get_value(row, self.column)
        except MissingColumnError as error:
            raise UserError(f"{self.key}.column", self.column, f"a row has {error}") from None
        if value is None:
            return None
        if not isinstance(value, str):
            hint = "; name what is inside, such as messages.0.content"
            what = (
                f"holds a {type(value).__name__}, not text{hint * isinstance(value, list | dict)}"
            )
            raise UserError(f"{self.key}.column", self.column, what)
        return value if value and not value.isspace() else None

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn exceptions of the libraries into an error about the faulty setting."""
        with capture_failed_files() as failed_files:
            try:
                yield
                return
            except (UserError, RunError):
                raise
            except Exception as error:  # each library raises its own types
                key, reason = _find_faulty_setting(error)
        if failed_files and failed_files[0] not in reason:
            reason += f", in {failed_files[0]}"
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
            self._builder, header = self._load_builder(
                partial(
                    datasets.load_dataset_builder,
                    name or self.name,
                    self.config,
                    revision=self.revision,
                ),
                is_cached=name is None and datasets.config.HF_HUB_OFFLINE,
            )
            if name is not None:
                self._note_unread_files(Path(name))
            if (again := f"{self.column}{DUPLICATE_SUFFIX}") in (header or ()):
                self.notes += (
                    f"{self.name}: has the columns {self.column} and {again}; if its header has "
                    f"{self.column} twice, only the first is read",
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

    def _load_builder(
        self, load: Callable[..., Any], is_cached: bool
    ) -> tuple[Any, list[str] | None]:
        try:
            return load_builder(load, (self.column, *self.filters), self.split, is_cached)
        except MissingColumnError as error:
            reason, column = error.args
            key = "column" if column == self.column else "filter"
            raise UserError(f"{self.key}.{key}", column, reason) from None

    def _note_unread_files(self, folder: Path) -> None:
        """Note the files of a folder that are not in any split."""
        splits = self._builder.config.data_files or {}
        read = {Path(str(file)).resolve() for files in splits.values() for file in files}
        unread = [
            path
            for path in list_files(folder)
            if path.resolve() not in read and path.name not in DATASET_CARDS
        ]
        reason = "the datasets library reads files of one kind"
        self.notes += tuple(note_left_out(self.name, unread, "not read", reason))

    def _find_columns(self) -> list[str]:
        """Return the columns that are read: of the text, and of the filter.

        Raises:
            UserError: If one does not exist.
        """
        with self.translate_errors():
            columns = self.dataset.column_names or list(next(iter(self.dataset), {}))
        found = {}
        named = [(f"{self.key}.column", self.column)]
        named += [(f"{self.key}.filter", column) for column in self.filters]
        for key, column in named:
            try:
                found[column] = find_root(column, columns)
            except MissingColumnError as error:
                raise UserError(key, column, str(error)) from None
        return list(dict.fromkeys(found.values()))


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


class _DatasetReader(DocumentReader):
    """A reader of a dataset's rows, which counts those that the filter leaves out."""

    source: HubDataset
    num_filtered: int

    @property
    def selection(self) -> dict[str, int]:
        """Number of rows that the filter has left out, under `filter`; empty without a filter."""
        return {"filter": self.num_filtered} if self.source.filters else {}

    def _select_text(self, row: Mapping[str, Any]) -> str | None:
        """Return a row's text if the filter accepts the row, else None."""
        if self.source.row_filter is not None and not self.source.row_filter.accepts(row):
            self.num_filtered += 1
            return None
        return self.source.get_text(row)


class _TableReader(_DatasetReader):
    """A reader of a prepared dataset on disk; its position is a row index."""

    def __init__(self, source: HubDataset, first: int) -> None:
        self.source, self.row_index, self.num_filtered = source, index(first), 0
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
        source = self.source
        rows = source.dataset.select_columns(source.columns)
        for start in range(self.row_index, len(rows), BATCH_ROWS):
            with source.translate_errors():
                batch = rows[start : start + BATCH_ROWS]
            for values in zip(*(batch[column] for column in source.columns), strict=True):
                self.row_index += 1
                text = self._select_text(dict(zip(source.columns, values, strict=True)))
                if text is not None:
                    yield text


class _StreamReader(_DatasetReader):
    """A reader of a streamed dataset; its position is the library's own stream state."""

    def __init__(self, source: HubDataset, position: ReaderPosition) -> None:
        self.source, self._start, self.num_filtered = source, position, 0
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
                    text = self._select_text(row)
                    if text is not None:
                        yield text
            except Exception as error:
                if not isinstance(error, OSError) and not is_connection_error(error):
                    raise  # an error in the data, not in the connection
                what = f"can no longer be read ({type(error).__name__}: {error})"
                raise RunError(f"{self.source.name} {what}; the run can be resumed") from error
