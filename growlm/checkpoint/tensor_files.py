"""Named tensors in safetensors files, one tensor in memory at a time: `stem.safetensors`, or shards and an index.

The format is eight bytes of length, a JSON header with every tensor's type, shape and place, and the bytes. All of
the header is known before the first tensor is made, so files are written as the tensors come.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from growlm.checkpoint.sealed import MANIFEST, check_manifest, read_json
from growlm.errors import DiskError, UserError

SHARD_BYTES = 5 * 10**9
INDEX = ".safetensors.index.json"
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path,
    stem: str,
    entries: Sequence[Entry],
    make: Callable[[str], Tensor],
    progress: Callable[[int], None] = lambda written: None,
) -> dict[str, str]:
    """Write tensors, each made when its turn comes and written while the next one is made.

    Args:
        folder: Exists.
        stem: Of the files' names.
        entries: In the order of writing.
        make: The tensor of a name, of the entry's type and shape.
        progress: Called with the bytes of each tensor that has been handed over.

    Returns:
        The SHA-256 of every file of tensors, by its name.

    Raises:
        DiskError: If a file cannot be written.
    """
    shards = _into_shards(entries)
    digests = {}
    names = [
        f"{stem}.safetensors"
        if len(shards) == 1
        else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file_name, shard in zip(names, shards, strict=True):
        header = _header(shard)
        size = len(header) + sum(entry.nbytes for entry in shard)
        with _DigestedFile(folder / file_name, size) as file, ThreadPoolExecutor(1) as writer:
            pending = writer.submit(file.write, header)
            for entry in shard:
                tensor = _checked(make(entry.name), entry)
                pending.result()
                pending = writer.submit(file.write, _bytes_of(tensor))
                del tensor
                progress(entry.nbytes)
            pending.result()
        digests[file_name] = file.digest.hexdigest()
    if len(shards) > 1:
        places = {e.name: n for n, shard in zip(names, shards, strict=True) for e in shard}
        total = sum(entry.nbytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}{INDEX}").write_text(json.dumps(index, indent=2) + "\n")
    return digests


def _into_shards(entries: Sequence[Entry]) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


class _DigestedFile:
    """A file that is written once, from its beginning to its end, and its checksum.

    Args:
        path: Of the file.
        size: Bytes that will be written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.digest = hashlib.sha256()
        self._written = 0

    def __enter__(self) -> _DigestedFile:
        with self._explained():
            self._file = self.path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: memoryview | bytes) -> None:
        """Append.

        Raises:
            DiskError: If not all of it could be written.
        """
        self.digest.update(data)
        rest = memoryview(data)
        while len(rest):
            with self._explained():
                written = self._file.write(rest)
            self._written += written
            rest = rest[written:]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(self.path, error, self.size - self._written) from error


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        header[entry.name] = {
            "dtype": TYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _checked(tensor: Tensor, entry: Entry) -> Tensor:
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise AssertionError(f"{entry.name} was made as {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.detach().cpu().contiguous()


class TensorSource(Protocol):
    """Named tensors that can be asked about before they are read: files, or what is made of files."""

    folder: Path
    key: str
    """What the user calls the folder, for messages."""

    @property
    def names(self) -> list[str]:
        """Of all tensors."""

    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""

    def read(self, name: str) -> Tensor:
        """A tensor."""


class TensorFiles:
    """Tensors on disk, read one at a time; nothing stays mapped between two reads.

    Args:
        folder: Of the files.
        stem: Of their names.
        key: What the user calls the folder, for messages.

    Raises:
        UserError: If the files are missing, or damaged: compared with the folder's manifest, if it has one.
    """

    def __init__(self, folder: Path, stem: str, key: str = "checkpoint") -> None:
        self.folder, self.stem, self.key = folder, stem, key
        self._file_of: dict[str, Path] = {}
        files = self._files()
        if (folder / MANIFEST).exists():
            check_manifest(folder, key, [file.name for file in files])
        for file in files:
            with self._open(file) as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)

    @staticmethod
    def exist(folder: Path, stem: str) -> bool:
        """Whether there are any."""
        return any((folder / f"{stem}{end}").is_file() for end in (".safetensors", INDEX))

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file_of)

    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""
        with self._open(self._file_of[name]) as opened:
            view = opened.get_slice(name)
            dtypes = [t for t, text in TYPE_NAMES.items() if text == view.get_dtype()]
            if not dtypes:
                allowed = (
                    f"{name} is of type {view.get_dtype()}, known: {', '.join(TYPE_NAMES.values())}"
                )
                raise UserError(self.key, self._file_of[name], allowed)
            return Entry(name, dtypes[0], tuple(view.get_shape()))

    def read(self, name: str) -> Tensor:
        """A tensor, mapped from its file for as long as it lives."""
        with self._open(self._file_of[name]) as opened:
            return opened.get_tensor(name)

    def _files(self) -> list[Path]:
        single, index = (
            self.folder / f"{self.stem}.safetensors",
            self.folder / f"{self.stem}{INDEX}",
        )
        if single.is_file():
            return [single]
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            allowed = f"neither {single.name} nor a readable {index.name} there"
            raise UserError(self.key, self.folder, allowed) from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(self.key, index, f"names {name!r}, which is no file of its folder")
        return [self.folder / name for name in names]

    @contextmanager
    def _open(self, file: Path) -> Iterator[safe_open]:
        try:
            opened = safe_open(file, framework="pt")
        except Exception as error:  # the library raises its own type for a damaged file
            raise UserError(self.key, file, f"cannot be read: {error}") from error
        with opened as tensors:
            yield tensors


def flush(path: Path) -> None:
    """Make what was written to a file survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
