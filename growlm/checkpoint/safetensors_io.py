"""Named tensors in safetensors files, one tensor in memory at a time.

`stem.safetensors`, or shards and an index, or parts that several processes wrote (`parts.py`). The format is eight
bytes of length, a JSON header with every tensor's type, shape and place, and the bytes. All of the header is known
before the first tensor is made, so files are written as the tensors come.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from growlm.checkpoint.shard_format import (
    RankShard,
    get_first_row,
    get_full_shape,
    list_rank_shard_names,
    parse_shard_offsets,
)
from growlm.runtime.errors import DiskError, UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import MAX_INDEX_BYTES, lexists, read_json, resolve_regular_file
from growlm.storage.integrity import MANIFEST, check_manifest, is_file_name
from growlm.storage.typed_values import truncate_text

MAX_SHARD_BYTES = 5 * 10**9
INDEX_SUFFIX = ".safetensors.index.json"
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


class TensorIndex(TypedDict):
    """The contents of an index: which file each tensor lies in."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class TensorInfo:
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
    infos: Sequence[TensorInfo],
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
    shards = _split_into_shards(infos)
    digests = {}
    names = [
        f"{stem}.safetensors"
        if len(shards) == 1
        else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file_name, shard in zip(names, shards, strict=True):
        digests[file_name] = write_safetensors(folder / file_name, shard, make, progress)
    if len(shards) > 1:
        places = {e.name: n for n, shard in zip(names, shards, strict=True) for e in shard}
        total = sum(entry.nbytes for entry in infos)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")
    return digests


def write_safetensors(
    path: Path,
    infos: Sequence[TensorInfo],
    make: Callable[[str], Tensor],
    progress: Callable[[int], None] = lambda written: None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write one file of tensors, as `write_tensors` does.

    Args:
        path: Of the file.
        entries: In the order of writing.
        make: The tensor of a name, of the entry's type and shape.
        progress: Called with the bytes of each tensor that has been handed over.
        notes: What else its header says.

    Returns:
        Its SHA-256.

    Raises:
        DiskError: If it cannot be written.
    """
    header = _make_header(infos, metadata or {})
    size = len(header) + sum(entry.nbytes for entry in infos)
    with _HashedFile(path, size) as file, ThreadPoolExecutor(1) as writer:
        pending = writer.submit(file.write, header)
        for entry in infos:
            tensor = _prepare_tensor(make(entry.name), entry)
            pending.result()
            pending = writer.submit(file.write, _bytes_of(tensor))
            del tensor
            progress(entry.nbytes)
        pending.result()
    return file.digest.hexdigest()


def _split_into_shards(entries: Sequence[TensorInfo]) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


class _HashedFile:
    """A file that is written once, from its beginning to its end, and its checksum.

    Args:
        path: Of the file.
        size: Bytes that will be written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.digest = hashlib.sha256()
        self._written = 0

    def __enter__(self) -> _HashedFile:
        with self._translate_errors():
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
            with self._translate_errors():
                written = self._file.write(rest)
            self._written += written
            rest = rest[written:]

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(self.path, error, self.size - self._written) from error


def _make_header(entries: Sequence[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _prepare_tensor(tensor: Tensor, entry: TensorInfo) -> Tensor:
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

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""

    def read(self, name: str) -> Tensor:
        """A tensor."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor."""


class TensorFiles:
    """Tensors on disk, read one at a time; nothing stays mapped between two reads.

    Args:
        folder: Of the files.
        stem: Of their names.
        key: What the user calls the folder, for messages.
        is_checked: Whether the files have been compared with the folder's manifest already.

    Raises:
        UserError: If the files are missing, or damaged: compared with the folder's manifest, if it has one.
    """

    def __init__(
        self, folder: Path, stem: str, key: str = "checkpoint", is_checked: bool = False
    ) -> None:
        self.folder, self.stem, self.key = folder, stem, key
        self._file_of: dict[str, Path] = {}
        self._rank_shards: dict[str, list[RankShard]] = {}
        files, are_parts = self._list_files()
        if not is_checked and lexists(folder / MANIFEST):
            check_manifest(folder, key, [file.name for file in files])
        for file in files:
            with self._open(file) as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)
                if are_parts:
                    self._register_rank_shards(file, opened)
        self._full_infos = {name: self._combine_rank_shards(name) for name in self._rank_shards}

    @staticmethod
    def exist(folder: Path, stem: str) -> bool:
        """Whether there are any."""
        if lexists(folder / f"{stem}.safetensors") or lexists(folder / f"{stem}{INDEX_SUFFIX}"):
            return True
        return any(folder.glob(f"{stem}-part-*.safetensors"))

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file_of)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        if name in self._full_infos:
            return self._full_infos[name]
        with self._open(self._file_of[name]) as opened:
            return self._read_info(self._file_of[name], opened, name)

    def read(self, name: str) -> Tensor:
        """A tensor, mapped from its file for as long as it lives; in memory where it lies in several files."""
        if len(self._rank_shards.get(name, ())) > 1:
            return self.read_rows(name, 0, self.info(name).shape[0])
        with self._open(self._file_of[name]) as opened:
            return opened.get_tensor(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, mapped as by `read`; nothing else of it is read."""
        if name not in self._full_infos:
            return self._slice(self._file_of[name], name, start, stop)
        parts = self._rank_shards[name]
        wanted = [part for part in parts if part.start < stop and start < part.stop] or parts[:1]
        pieces = [self._slice(part.file, name, *part.local_rows(start, stop)) for part in wanted]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _slice(self, file: Path, name: str, start: int, stop: int) -> Tensor:
        with self._open(file) as opened:
            return opened.get_slice(name)[start:stop]

    def _read_info(self, file: Path, opened: safe_open, name: str) -> TensorInfo:
        view = opened.get_slice(name)
        dtypes = [t for t, text in DTYPE_NAMES.items() if text == view.get_dtype()]
        if not dtypes:
            allowed = (
                f"{name} is of type {view.get_dtype()}, known: {', '.join(DTYPE_NAMES.values())}"
            )
            raise UserError(self.key, file, allowed)
        return TensorInfo(name, dtypes[0], tuple(view.get_shape()))

    def _register_rank_shards(self, file: Path, opened: safe_open) -> None:
        try:
            offsets = parse_shard_offsets(opened.metadata())
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                entry = self._read_info(file, opened, name)
                start = get_first_row(offsets, name, entry.shape)
                self._rank_shards.setdefault(name, []).append(
                    RankShard(file, entry.dtype, entry.shape, start)
                )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(self.key, file, str(error)) from error

    def _combine_rank_shards(self, name: str) -> TensorInfo:
        parts = sorted(self._rank_shards[name], key=lambda part: (part.start, part.stop))
        self._rank_shards[name] = parts
        try:
            return TensorInfo(name, parts[0].dtype, get_full_shape(name, parts))
        except ValueError as error:
            raise UserError(self.key, self.folder, str(error)) from error

    def _list_files(self) -> tuple[list[Path], bool]:
        """All files, and whether they are parts."""
        single, index = (
            self.folder / f"{self.stem}.safetensors",
            self.folder / f"{self.stem}{INDEX_SUFFIX}",
        )
        if lexists(single):
            return [single], False
        try:
            parts = list_rank_shard_names(self.folder, self.stem)
        except ValueError as error:
            raise UserError(self.key, self.folder, str(error)) from error
        if parts:
            return [self.folder / name for name in parts], True
        if not lexists(index):
            allowed = f"neither {single.name} nor {index.name} there"
            raise UserError(self.key, self.folder, allowed)
        content = read_json(index, self.key, self.folder, TensorIndex, max_bytes=MAX_INDEX_BYTES)
        names = sorted(set(content["weight_map"].values()))
        for name in names:
            if not is_file_name(name):
                allowed = f"names {truncate_text(name)!r}, which is no file of its folder"
                raise UserError(self.key, index, allowed)
        return [self.folder / name for name in names], False

    @contextmanager
    def _open(self, file: Path) -> Iterator[safe_open]:
        target = resolve_regular_file(file, self.key, self.folder)
        try:
            opened = safe_open(target, framework="pt")
        except Exception as error:  # the library raises its own type for a damaged file
            raise UserError(self.key, file, f"cannot be read: {summarize_error(error)}") from error
        try:
            with opened as tensors:
                yield tensors
        except SafetensorError as error:
            raise UserError(self.key, file, f"cannot be read: {summarize_error(error)}") from error


def fsync_path(path: Path) -> None:
    """Make what was written to a file survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
