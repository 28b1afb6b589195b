"""Read and append to runs.jsonl, which has a line for each finished run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from growlm.runtime.errors import UserError
from growlm.storage.input_files import MAX_HISTORY_BYTES, lexists, read_bytes
from growlm.storage.parsing import parse_json

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read all records; an incomplete last line, left by a killed process, is cut off.

    Raises:
        UserError: If another line is not a record.
    """
    if not lexists(path):
        return []
    data = read_bytes(path, "--out", None, MAX_HISTORY_BYTES)
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)
    records = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            record = parse_json(line.decode(), allow_nan=True)
            record["key"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError("--out", path, f"line {number} is not a record of a run") from error
        records.append(record)
    return records


def add_record(path: Path, record: Record) -> None:
    """Append a record and flush it to disk."""
    with path.open("ab") as file:
        file.write((json.dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
