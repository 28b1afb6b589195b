"""runs.jsonl: a line for each run that has finished, added as soon as it has."""

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
    """All lines; half a line at the end, of a process that was killed, is cut off.

    Raises:
        UserError: If another line is no record.
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
            raise UserError("--out", path, f"line {number} is no record of a run") from error
        records.append(record)
    return records


def add_record(path: Path, record: Record) -> None:
    """Write a line, for good."""
    with path.open("ab") as file:
        file.write((json.dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
