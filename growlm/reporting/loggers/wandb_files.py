"""Mend the files of a stopped run's offline W&B parts, so that `wandb sync` reads all of them.

A part's file is a log in LevelDB's format: blocks of 32 KiB of fragments, each with a header of checksum, length
and kind. W&B writes it in its own process from time to time, so a kill may cut it anywhere. `wandb sync` uploads
no later part of a run once it has met a record that is cut.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 32768
FILE_HEADER_BYTES = FRAGMENT_HEADER_BYTES = 7
WHOLE, LAST = 1, 4
"""Kinds of the fragments that end a record."""


def mend_offline_parts(folder: Path, run_id: str, current: Path, num_entries: int) -> int:
    """Cut from the earlier parts what is incomplete or will be logged again; return how many entries they have.

    A part that has been uploaded is left as it is; one without any complete record of its run is removed.

    Args:
        folder: The `wandb` folder of the run's folder.
        run_id: W&B id of the run.
        current: Folder of the part that is written now.
        num_entries: Entries in the history of the resumed run, numbered from 0; later ones come again.
    """
    num_logged = 0
    for part in sorted(folder.glob(f"offline-run-*-{run_id}")):
        file = part / f"run-{run_id}.wandb"
        if part == current or not file.is_file():
            continue
        end, next_entry, has_run = _find_end(file.read_bytes(), num_entries)
        is_uploaded = file.with_name(f"{file.name}.synced").exists()
        if not has_run and not is_uploaded:
            shutil.rmtree(part)
        elif end < file.stat().st_size and not is_uploaded:
            with file.open("r+b") as log:
                log.truncate(end)
        num_logged = max(num_logged, next_entry)
    return num_logged


def _find_end(data: bytes, num_entries: int) -> tuple[int, int, bool]:
    """Return where to cut a part, the number of the entry after its last, and whether it says which run it is."""
    from wandb.proto import wandb_internal_pb2

    parse_record = vars(wandb_internal_pb2)["Record"].FromString  # protobuf makes it at import
    end, next_entry, has_run = min(FILE_HEADER_BYTES, len(data)), 0, False
    for content, record_end in _read_records(data):
        record = parse_record(content)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            if record.history.step.num >= num_entries:
                return end, next_entry, has_run
            next_entry = record.history.step.num + 1
        has_run = has_run or kind == "run"
        end = record_end
    return end, next_entry, has_run


def _read_records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each complete record, and where it ends."""
    position, content = FILE_HEADER_BYTES, b""
    while True:
        if BLOCK_BYTES - position % BLOCK_BYTES < FRAGMENT_HEADER_BYTES:
            position += BLOCK_BYTES - position % BLOCK_BYTES
        if position + FRAGMENT_HEADER_BYTES > len(data):
            return
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += FRAGMENT_HEADER_BYTES
        if kind == 0 or position + length > len(data):
            return
        content += data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            yield content, position
            content = b""
