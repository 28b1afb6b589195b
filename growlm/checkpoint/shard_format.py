"""Tensors that several processes wrote together, each its own rows into a file of its own.

`stem-part-00001-of-00002.safetensors` and so on, one for each process. The header of each says where in the whole
tensors its own ones lie, as `torch.distributed.checkpoint` says it: its `HuggingFaceStorageReader` reads them.
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
    """Some rows of a tensor, or all of one that has no rows."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.start + (self.shape[0] if self.shape else 1)

    def local_rows(self, start: int, stop: int) -> tuple[int, int]:
        """Which of its rows are among these of the whole tensor, from and to; the same twice if none is."""
        first = min(max(start, self.start), self.stop) - self.start
        return first, max(first, min(stop, self.stop) - self.start)


def rank_shard_name(stem: str, rank: int, world_size: int) -> str:
    """The file of one of so many processes."""
    return f"{stem}-part-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def list_rank_shard_names(folder: Path, stem: str) -> list[str]:
    """The files of all processes, whether they are there or not; empty if there is not one.

    Raises:
        ValueError: If there are files of one more process, or of one less.
    """
    pattern = re.compile(re.escape(stem) + r"-part-\d{5}-of-(\d{5})\.safetensors")
    names = sorted(path.name for path in folder.glob(f"{stem}-part-*.safetensors"))
    sizes = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
    if not sizes:
        return []
    expected = [rank_shard_name(stem, rank, max(sizes)) for rank in range(max(sizes))]
    if strays := sorted(set(names) - set(expected)):
        raise ValueError(f"{strays[0]} is none of the {max(sizes)} parts")
    return expected


def make_shard_metadata(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What the header of a part says of its tensors: where in the whole one the first entry of each lies."""
    places = {name: {OFFSETS_KEY: list(place)} for name, place in offsets.items()}
    return {SHARDING_INFO_KEY: json.dumps(places, separators=(",", ":")), **VERSION_METADATA}


def parse_shard_offsets(metadata: Mapping[str, str] | None) -> Mapping[str, Any]:
    """What `notes_on` wrote into a header, as it stands there.

    Raises:
        ValueError: If it is not there.
    """
    try:
        places = parse_json((metadata or {})[SHARDING_INFO_KEY])
        return {name: place[OFFSETS_KEY] for name, place in places.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("does not say of which rows its tensors are") from error


def get_first_row(offsets: Mapping[str, Any], name: str, shape: Sequence[int]) -> int:
    """Where a part's rows of a tensor begin.

    Raises:
        ValueError: If the offsets do not say it, or say what is no place for rows.
    """
    place = offsets.get(name)
    is_list = isinstance(place, list) and all(type(n) is int and n >= 0 for n in place)
    if not is_list or place is None or len(place) != len(shape) or any(place[1:]):
        raise ValueError(f"says that its part of {name} lies at {place}")
    return int(place[0]) if place else 0


def get_full_shape(name: str, shards: Sequence[RankShard]) -> tuple[int, ...]:
    """The shape of the whole tensor.

    Args:
        name: Of the tensor.
        parts: In the order of their rows.

    Raises:
        ValueError: If they do not follow each other without gaps, or do not fit.
    """
    first, row = shards[0], 0
    for part in shards:
        if part.start != row or (not part.shape and len(shards) > 1):
            raise ValueError(f"the parts of {name} do not follow each other: row {row}")
        if (part.dtype, part.shape[1:]) != (first.dtype, first.shape[1:]):
            raise ValueError(f"the parts of {name} are of different types or shapes")
        row = part.stop
    return (row, *first.shape[1:]) if first.shape else ()
