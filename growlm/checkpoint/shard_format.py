"""Define the format of rank shards: files in which each rank has written its own rows of sharded tensors.

The files are `stem-part-00001-of-00002.safetensors` and so on, one per rank. The header of each has the offsets of
its rows in the full tensors, as `torch.distributed.checkpoint` stores them, whose `HuggingFaceStorageReader` can
read the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growlm.storage.parsing import parse_json

SHARDING_INFO_KEY = "DCP_SHARDING_INFO"
VERSION_METADATA = {"DCP_VERSION": "1.0"}
OFFSETS_KEY = "saved_offsets"


@dataclass(frozen=True)
class RankShard:
    """One rank's rows of a tensor, or a whole scalar."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """Index in the full tensor of the row after the last one."""
        return self.start + (self.shape[0] if self.shape else 1)

    def local_rows(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of the shard's own rows that lie in a row range of the full tensor; may be empty."""
        first = min(max(start, self.start), self.stop) - self.start
        return first, max(first, min(stop, self.stop) - self.start)


def rank_shard_name(stem: str, rank: int, world_size: int) -> str:
    """Return the name of the file that a rank writes."""
    return f"{stem}-part-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def list_rank_shard_names(folder: Path, stem: str) -> list[str]:
    """List the file names of all ranks, including missing files; empty if the folder has none of them.

    Raises:
        ValueError: If the folder also has files of another number of ranks.
    """
    pattern = re.compile(re.escape(stem) + r"-part-\d{5}-of-(\d{5})\.safetensors")
    names = sorted(path.name for path in folder.glob(f"{stem}-part-*.safetensors"))
    sizes = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
    if not sizes:
        return []
    expected = [rank_shard_name(stem, rank, max(sizes)) for rank in range(max(sizes))]
    if strays := sorted(set(names) - set(expected)):
        raise ValueError(f"{strays[0]} does not belong to the {max(sizes)} rank shards")
    return expected


def make_shard_metadata(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the header metadata of a shard: the offset of each tensor's first entry in the full tensor."""
    info = {name: {OFFSETS_KEY: list(offset)} for name, offset in offsets.items()}
    return {SHARDING_INFO_KEY: json.dumps(info, separators=(",", ":")), **VERSION_METADATA}


def parse_shard_offsets(metadata: Mapping[str, str] | None) -> Mapping[str, Any]:
    """Read the offsets by tensor name from header metadata; they are not validated.

    Raises:
        ValueError: If the metadata has no offsets.
    """
    try:
        info = parse_json((metadata or {})[SHARDING_INFO_KEY])
        return {name: entry[OFFSETS_KEY] for name, entry in info.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("has no row offsets for its tensors in its header") from error


def get_first_row(offsets: Mapping[str, Any], name: str, shape: Sequence[int]) -> int:
    """Return the index in the full tensor of a shard's first row.

    Raises:
        ValueError: If the tensor's offset is missing or not a valid offset of rows.
    """
    offset = offsets.get(name)
    is_list = isinstance(offset, list) and all(type(n) is int and n >= 0 for n in offset)
    if not is_list or offset is None or len(offset) != len(shape) or any(offset[1:]):
        raise ValueError(f"has an invalid offset for {name}: {offset}")
    return int(offset[0]) if offset else 0


def get_full_shape(name: str, shards: Sequence[RankShard]) -> tuple[int, ...]:
    """Return the shape of the full tensor.

    Args:
        name: Name of the tensor, for messages.
        shards: All shards of the tensor, in the order of their rows.

    Raises:
        ValueError: If rows are missing or overlap, or dtypes or shapes differ.
    """
    first, row = shards[0], 0
    for shard in shards:
        if shard.start != row or (not shard.shape and len(shards) > 1):
            raise ValueError(f"the shards of {name} have a gap or overlap at row {row}")
        if (shard.dtype, shard.shape[1:]) != (first.dtype, first.shape[1:]):
            raise ValueError(f"the shards of {name} differ in dtype or shape")
        row = shard.stop
    return (row, *first.shape[1:]) if first.shape else ()
