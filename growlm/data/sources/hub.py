"""Datasets of the Hugging Face hub, and folders that are laid out like them, through the `datasets` library."""

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
"""Whose errors are of what is read, not of this code."""
OFFLINE_ADVICE = (
    "use data=text data.path=FILE or data=embedded, which need no network; or, on a machine that reaches the hub, "
    "load it once without data.streaming, and copy the folder that HF_HOME names (then HF_HUB_OFFLINE=1)"
)


class HubDataset(DocumentSource):
    """One split of a dataset.

    Args:
        name: On the hub (`roneneldan/TinyStories`), or a folder with files in it.
        config: Its configuration; None for the only one, or the default.
        split: `train`, or a part: `train[:10%]` (not when streaming).
        column: Where the text is.
        revision: A commit or tag of the hub's; None for the newest.
        streaming: Read over the network as it is needed, in place of downloading everything first.
        key: What the user calls the source.

    Raises:
        UserError: If there is no such dataset, configuration, split or column, or the hub cannot be reached and
            the dataset is not in the library's cache.
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
        """From the first row on, or from where another reader stood."""
        return (
            _StreamReader(self, position) if self.streaming else _TableReader(self, position or 0)
        )

    def identity(self) -> Any:
        """Dataset, configuration, version and, from the hub, commit: what the library's own cache goes by."""
        import datasets

        cache = os.path.relpath(self._builder.cache_dir, datasets.config.HF_DATASETS_CACHE)
        return ["huggingface", cache, self.split, self.column]

    def open_stream(self) -> Any:
        """The split as it comes; one for every reader, since each keeps its own position."""
        rows = self._builder.as_streaming_dataset(split=self.split)
        return rows.select_columns([self.column]) if rows.column_names else rows

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn what the libraries raise into a message about the setting that is at fault."""
        try:
            yield
            return
        except (UserError, RunError):
            raise
        except Exception as error:  # each library has its own
            key, allowed = _find_faulty_setting(error)
        # Raised out here so that no library traceback hangs on an error that is one sentence long.
        raise UserError(f"{self.key}.{key}", getattr(self, key), allowed)

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
            allowed = "is no folder here, and no dataset's name; that is OWNER/NAME"
            raise UserError(f"{self.key}.name", self.name, allowed)

    def _check_column(self) -> None:
        with self.translate_errors():
            columns = self.dataset.column_names or list(next(iter(self.dataset), {}))
        if self.column not in columns:
            there = ", ".join(columns)
            raise UserError(
                f"{self.key}.column", self.column, f"no such column; there are: {there}"
            )


def _find_faulty_setting(error: Exception) -> tuple[str, str]:
    """The setting that an error of the library is about, and what to say.

    Raises:
        Exception: The error itself, if it is about none.
    """
    import datasets

    text = " ".join(str(error).split())
    if is_connection_error(error):
        return (
            "name",
            f"the hub cannot be reached, and it is not in the library's cache; {OFFLINE_ADVICE}",
        )
    if isinstance(error, ValueError) and ("BuilderConfig" in text or "onfig name is" in text):
        return "config", text
    if isinstance(error, ValueError) and "split" in text.lower():
        return "split", text
    ours = (OSError, EOFError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    if isinstance(error, ours) or type(error).__module__.partition(".")[0] in DATASET_LIBRARIES:
        cause = error.__cause__
        return "name", f"cannot be loaded: {text}{f' ({cause})' if cause else ''}"
    raise error


class _TableReader(DocumentReader):
    """A prepared dataset, which lies on disk; the place is a row's number."""

    def __init__(self, source: HubDataset, first: int) -> None:
        self.source, self.row_index = source, index(first)
        self._texts = self._read()

    def __next__(self) -> str:
        return next(self._texts)

    def position(self) -> ReaderPosition:
        """The next row's number."""
        return self.row_index

    @property
    def fraction_read(self) -> float:
        """Of the rows."""
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
    """A dataset as it comes; the place is what the library itself would go on from."""

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
        """Shard and row, in the library's words; None for the beginning."""
        # Until it has read something, the library does not say what it was told to go on from.
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
                    raise  # what is read is at fault
                what = f"cannot be read any more ({type(error).__name__}: {error})"
                raise RunError(f"{self.source.name} {what}; the run can be resumed") from error


def _is_text(value: Any, source: HubDataset) -> bool:
    if value is None:
        return False
    if not isinstance(value, str):
        what = f"holds a {type(value).__name__}, no text"
        raise UserError(f"{source.key}.column", source.column, what)
    return bool(value) and not value.isspace()
