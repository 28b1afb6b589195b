"""Reading an offline W&B file: a LevelDB log (blocks of 32 KiB, records with crc, length, type) of protobufs.

W&B's own reader went into its compiled core, so the container is read here and the records by W&B's protobufs.
"""

import struct

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


def wandb_run(folder):
    """The run of the one offline W&B folder somewhere below `folder`."""
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    runs = [r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run"]
    return runs[0]


def wandb_history(file):
    """(W&B's step, metrics by name) of every row of a file."""
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            yield record.history.step.num, items
