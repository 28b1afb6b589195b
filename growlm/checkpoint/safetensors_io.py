"""Read and write named tensors in safetensors files, one tensor in memory at a time.

Tensors are in one file `stem.safetensors`, in shards with an index, or in one file per rank (`shard_format.py`). A
safetensors file has eight bytes for the length of the header, a JSON header with every tensor's dtype, shape and
offsets, and then the data. The header is known before the first tensor is computed, so one pass writes the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

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

MakeTensor = Callable[[str], Tensor | Iterator[Tensor]]
"""Function that computes the tensor of a name, or yields its rows in parts."""
MAX_SHARD_BYTES = 5 * 10**9
PART_BYTES = 2**25
"""Size of the parts in which an unchanged tensor is read."""
INDEX_SUFFIX = ".safetensors.index.json"
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorIndex(TypedDict):
    """The contents of an index file: the file that holds each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of a tensor."""

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
    make: MakeTensor,
    progress: Callable[[int], None] = lambda written: None,
) -> dict[str, str]:
    """Write tensors to one file or to shards; each is written while the next one is computed.

    Args:
        folder: Existing folder.
        stem: First part of the file names.
        infos: Names, dtypes and shapes of the tensors, in the order of writing.
        make: Function that computes the tensor of a name, with the dtype and shape of its info, or yields its rows
            in parts.
        progress: Function called with the size in bytes of each tensor once it is queued for writing.

    Returns:
        The SHA-256 of every file of tensors, by file name.

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
        file_of = {e.name: n for n, shard in zip(names, shards, strict=True) for e in shard}
        total = sum(info.nbytes for info in infos)
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / f"{stem}{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")
    return digests


def write_safetensors(
    path: Path,
    infos: Sequence[TensorInfo],
    make: MakeTensor,
    progress: Callable[[int], None] = lambda written: None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write one safetensors file; each tensor is written while the next one is computed.

    Args:
        path: File to write.
        infos: Names, dtypes and shapes of the tensors, in the order of writing.
        make: Function that computes the tensor of a name, with the dtype and shape of its info, or yields its rows
            in parts.
        progress: Function called with the size in bytes of each tensor once it is queued for writing.
        metadata: Further metadata for the header.

    Returns:
        The file's SHA-256.

    Raises:
        DiskError: If it cannot be written.
    """
    header = _make_header(infos, metadata or {})
    size = len(header) + sum(info.nbytes for info in infos)
    with _HashedFile(path, size) as file, ThreadPoolExecutor(1) as writer:
        pending = writer.submit(file.write, header)
        for info in infos:
            made = make(info.name)
            for tensor in _prepare_parts([made] if isinstance(made, Tensor) else made, info):
                pending.result()
                pending = writer.submit(file.write, _bytes_of(tensor))
                del tensor
            del made
            progress(info.nbytes)
        pending.result()
    return file.digest.hexdigest()


def _split_into_shards(infos: Sequence[TensorInfo]) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in infos:
        if shards[-1] and size + info.nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.nbytes
    return shards


class _HashedFile:
    """A file that is written sequentially while its SHA-256 is computed.

    Args:
        path: File to write.
        size: Total size in bytes, for the message of a `DiskError`.
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
        """Append data.

        Raises:
            DiskError: If it could not be written completely.
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


def _make_header(infos: Sequence[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for info in infos:
        end = start + info.nbytes
        header[info.name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _prepare_parts(parts: Iterable[Tensor], info: TensorInfo) -> Iterator[Tensor]:
    """Yield parts that make up a tensor, as they are written.

    Raises:
        AssertionError: If they have another dtype or shape than the info says.
    """
    rows = 0
    for part in parts:
        shape = (*part.shape[:1], *info.shape[1:])
        if part.dtype != info.dtype or tuple(part.shape) != shape or part.ndim != len(info.shape):
            found = f"{part.dtype} {tuple(part.shape)}"
            raise AssertionError(f"{info.name} is {found}; expected {info.dtype} {info.shape}")
        rows += part.shape[0] if part.ndim else 1
        yield part.detach().cpu().contiguous()
    if rows != (info.shape[0] if info.shape else 1):
        raise AssertionError(f"{info.name} has {rows} rows; expected {info.shape}")


class TensorSource(Protocol):
    """Named tensors whose dtypes and shapes are known before they are read: files, or computed from files."""

    folder: Path
    key: str
    """Setting that named the folder, for messages."""

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""

    def read(self, name: str) -> Tensor:
        """Read a tensor."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` up to `stop` of a tensor."""


@runtime_checkable
class CopiedTensors(Protocol):
    """A `TensorSource` that may have tensors of another one unchanged."""

    def copied_from(self, name: str) -> tuple[TensorSource, str] | None:
        """Return the source and the name of an unchanged tensor; None for one that is computed."""


def find_stored_tensor(source: TensorSource, name: str) -> tuple[TensorFiles, str] | None:
    """Return the files that hold a tensor unchanged, and its name there; None for one that is computed."""
    while isinstance(source, CopiedTensors):
        if (copied := source.copied_from(name)) is None:
            return None
        source, name = copied
    return (source, name) if isinstance(source, TensorFiles) else None


def read_in_parts(source: TensorSource, name: str) -> Tensor | Iterator[Tensor]:
    """Read a tensor: in parts, each of them mapped by itself, if it is stored unchanged.

    The resident memory of a process includes the pages of mapped files, so a whole tensor would count.
    """
    if (stored := find_stored_tensor(source, name)) is None:
        return source.read(name)
    files, stored_name = stored
    shape = files.info(stored_name).shape
    if not shape:
        return source.read(name)
    row_bytes = files.info(stored_name).nbytes // max(1, shape[0])
    rows = max(1, PART_BYTES // max(1, row_bytes))
    starts = range(0, shape[0], rows)
    return (files.read_rows(stored_name, each, min(each + rows, shape[0])) for each in starts)


class TensorFiles:
    """Safetensors files of a folder, read one tensor at a time; no file stays open between reads.

    Args:
        folder: Folder of the files.
        stem: First part of the file names.
        key: Setting that named the folder, for messages.
        is_checked: Whether the files have been checked against the folder's manifest already.

    Raises:
        UserError: If files are missing, or do not match the folder's manifest, if it has one.
    """

    def __init__(
        self, folder: Path, stem: str, key: str = "checkpoint", is_checked: bool = False
    ) -> None:
        self.folder, self.stem, self.key = folder, stem, key
        self._file_of: dict[str, Path] = {}
        self._rank_shards: dict[str, list[RankShard]] = {}
        files, are_rank_shards = self._list_files()
        if not is_checked and lexists(folder / MANIFEST):
            check_manifest(folder, key, [file.name for file in files])
        for file in files:
            with self._open(file) as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)
                if are_rank_shards:
                    self._register_rank_shards(file, opened)
        self._full_infos = {name: self._combine_rank_shards(name) for name in self._rank_shards}

    @staticmethod
    def exist(folder: Path, stem: str) -> bool:
        """Return whether a folder has tensor files with this stem."""
        if lexists(folder / f"{stem}.safetensors") or lexists(folder / f"{stem}{INDEX_SUFFIX}"):
            return True
        return any(folder.glob(f"{stem}-part-*.safetensors"))

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._file_of)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        if name in self._full_infos:
            return self._full_infos[name]
        with self._open(self._file_of[name]) as opened:
            return self._read_info(self._file_of[name], opened, name)

    def read(self, name: str) -> Tensor:
        """Read a tensor: memory-mapped from its file, or copied into memory if it spans several files."""
        if len(self._rank_shards.get(name, ())) > 1:
            return self.read_rows(name, 0, self.info(name).shape[0])
        with self._open(self._file_of[name]) as opened:
            return opened.get_tensor(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` up to `stop` of a tensor, and nothing else of it."""
        if name not in self._full_infos:
            return self._slice(self._file_of[name], name, start, stop)
        shards = self._rank_shards[name]
        needed = [s for s in shards if s.start < stop and start < s.stop] or shards[:1]
        rows = [self._slice(s.file, name, *s.local_rows(start, stop)) for s in needed]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _slice(self, file: Path, name: str, start: int, stop: int) -> Tensor:
        with self._open(file) as opened:
            return opened.get_slice(name)[start:stop]

    def _read_info(self, file: Path, opened: safe_open, name: str) -> TensorInfo:
        view = opened.get_slice(name)
        dtypes = [t for t, text in DTYPE_NAMES.items() if text == view.get_dtype()]
        if not dtypes:
            supported = ", ".join(DTYPE_NAMES.values())
            reason = f"{name} has type {view.get_dtype()}; supported: {supported}"
            raise UserError(self.key, file, reason)
        return TensorInfo(name, dtypes[0], tuple(view.get_shape()))

    def _register_rank_shards(self, file: Path, opened: safe_open) -> None:
        try:
            offsets = parse_shard_offsets(opened.metadata())
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                info = self._read_info(file, opened, name)
                start = get_first_row(offsets, name, info.shape)
                self._rank_shards.setdefault(name, []).append(
                    RankShard(file, info.dtype, info.shape, start)
                )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(self.key, file, str(error)) from error

    def _combine_rank_shards(self, name: str) -> TensorInfo:
        shards = sorted(self._rank_shards[name], key=lambda shard: (shard.start, shard.stop))
        self._rank_shards[name] = shards
        try:
            return TensorInfo(name, shards[0].dtype, get_full_shape(name, shards))
        except ValueError as error:
            raise UserError(self.key, self.folder, str(error)) from error

    def _list_files(self) -> tuple[list[Path], bool]:
        """List all files, and whether each was written by a rank of its own."""
        single = self.folder / f"{self.stem}.safetensors"
        index = self.folder / f"{self.stem}{INDEX_SUFFIX}"
        try:
            rank_shards = list_rank_shard_names(self.folder, self.stem)
        except ValueError as error:
            raise UserError(self.key, self.folder, str(error)) from error
        found = [path.name for path in (single, index) if lexists(path)] + rank_shards[:1]
        if len(found) > 1 and self._read_index(index) != [single.name]:
            reason = (
                f"has weights twice, in {' and in '.join(found)}, and only one of them can be meant; move the "
                "other out of the folder"
            )
            raise UserError(self.key, self.folder, reason)
        if lexists(single):
            return [single], False
        if rank_shards:
            return [self.folder / name for name in rank_shards], True
        if not lexists(index):
            reason = f"has neither {single.name} nor {index.name}"
            raise UserError(self.key, self.folder, reason)
        return [self.folder / name for name in self._read_index(index)], False

    def _read_index(self, index: Path) -> list[str]:
        """Return the names of the files that an index lists; empty if there is no index."""
        if not lexists(index):
            return []
        content = read_json(index, self.key, self.folder, TensorIndex, max_bytes=MAX_INDEX_BYTES)
        names = sorted(set(content["weight_map"].values()))
        for name in names:
            if not is_file_name(name):
                reason = f"names {truncate_text(name)!r}, which is not a file in its folder"
                raise UserError(self.key, index, reason)
        return names

    @contextmanager
    def _open(self, file: Path) -> Iterator[safe_open]:
        target = resolve_regular_file(file, self.key, self.folder)
        try:
            opened = safe_open(target, framework="pt")
        except Exception as error:  # safetensors raises types of its own for damaged files
            raise UserError(self.key, file, f"cannot be read: {summarize_error(error)}") from error
        try:
            with opened as tensors:
                yield tensors
        except SafetensorError as error:
            raise UserError(self.key, file, f"cannot be read: {summarize_error(error)}") from error


def fsync_path(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
