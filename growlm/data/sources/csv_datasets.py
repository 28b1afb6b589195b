"""Load datasets in CSV through the `datasets` library with their text as it is written.

By itself, the library takes `null`, `None`, `NA` and others for missing values, and `007` for a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from growlm.data.sources.row_values import MissingColumnError, describe_missing_column

DUPLICATE_SUFFIX = ".1"
"""What pandas adds to a column's name if another before it has the same."""


def load_builder(
    load: Callable[..., Any], columns: Sequence[str], split: str, is_cached: bool
) -> tuple[Any, list[str] | None]:
    """Return a dataset's builder, which for CSV reads only some columns, as text.

    Args:
        load: `datasets.load_dataset_builder` of the dataset; takes more options of the builder.
        columns: Columns to read.
        split: Split to read, or a part of one.
        is_cached: Whether the dataset comes from the library's cache, which does not say what it was made of.

    Returns:
        The builder, and the names of all columns if it is CSV.

    Raises:
        MissingColumnError: If it is CSV and has no such column; with a message and the column's name.
    """
    from datasets import Features, Value
    from datasets.packaged_modules.csv.csv import CsvConfig

    names = list(dict.fromkeys(columns))
    as_written: dict[str, Any] = {
        "features": Features({name: Value("string") for name in names}),
        "usecols": names,
        "keep_default_na": False,
    }
    if is_cached:
        with suppress(Exception):  # of another kind, or cached by another program
            return load(**as_written), None
    builder = load()
    if not isinstance(builder.config, CsvConfig):
        return builder, None
    header = _read_header(builder, split)
    for name in names:
        if name not in header:
            raise MissingColumnError(describe_missing_column(header), name)
    return load(**as_written), header


def _read_header(builder: Any, split: str) -> list[str]:
    """Return the names of the columns of the first file, changing the builder."""
    builder.config.nrows = 1
    builder.config.data_files = {
        name: files[:1] for name, files in builder.config.data_files.items()
    }
    whole = re.match(r"\w*", split)
    rows = builder.as_streaming_dataset(split=whole[0] if whole else split)
    header: list[str] = []
    try:
        for row in rows:  # to the end, where pandas closes the file
            header = list(row)
    except UnicodeDecodeError as error:  # old releases of the library do not log the file's name
        files = builder.config.data_files
        error.reason += (
            f", in {files.get(whole[0] if whole else split, next(iter(files.values())))[0]}"
        )
        raise
    return header
