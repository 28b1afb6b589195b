"""Reading an offline W&B file: a LevelDB log (blocks of 32 KiB, records with crc, length, type) of protobufs.

W&B's own reader went into its compiled core, so the container is read here and the records by W&B's protobufs.
"""

import json
import struct

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK = 32768
FILE_HEADER = 7
RECORD_HEADER = 7


def wandb_records(path):
    """Yield every record of the file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        if BLOCK - position % BLOCK < RECORD_HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += RECORD_HEADER
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_file(folder):
    """The one offline W&B file of a run."""
    wandb.teardown()  # a run of this very process: its file is whole once W&B's own process has ended
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return file


def wandb_run(folder):
    """The run of the one offline W&B folder somewhere below `folder`."""
    return records_of(wandb_file(folder), "run")[0]


def records_of(file, kind):
    """The records of one kind."""
    return [getattr(r, kind) for r in wandb_records(file) if r.WhichOneof("record_type") == kind]


def wandb_rows(file):
    """Every row as a dictionary, nested keys joined by dots, values decoded."""
    return [{k: json.loads(v) for k, v in row.items()} for _, row in wandb_history(file)]


def wandb_table(file, row, key):
    """Columns and rows of the table that a row refers to."""
    table = json.loads((file.parent / "files" / row[f"{key}.path"]).read_text())
    return table["columns"], table["data"]


def wandb_history(file):
    """(W&B's step, metrics by name) of every row of a file."""
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            yield record.history.step.num, items
