"""Tensors of which every process holds its own rows, to disk and back.

`torch.distributed.checkpoint` says who writes and who reads what; the files are ours (`parts.py`). torch's own
storage is not used: `FileSystemWriter` leaves a pickle, and `HuggingFaceStorageWriter`, whose form of safetensors
this is, first puts all that a process writes together in memory, and knows no checksums.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.futures import Future

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource, fsync_path, write_safetensors
from growlm.checkpoint.shard_format import make_shard_metadata, rank_shard_name
from growlm.checkpoint.weight_validation import build_meta_model
from growlm.distributed.dtensors import from_local, get_mesh_device, get_shard_rows
from growlm.distributed.process_group import DistributedContext
from growlm.model.config import ModelConfig
from growlm.model.fsdp import apply_fsdp
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import RunError


def write_rank_shards(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dist_context: DistributedContext
) -> dict[str, str]:
    """Write tensors, every process its own rows; all must ask for it. No row goes to another process.

    Args:
        folder: Exists, and is the same for all processes.
        stem: Of the files' names.
        tensors: Those that are not sharded are written once.
        world: All processes.

    Returns:
        The SHA-256 of every file, by its name.

    Raises:
        DiskError: If this process cannot write.
        EndedElsewhereError: If another one cannot.
    """
    writer = RankShardWriter(folder, stem, dist_context)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        checkpoint.save(
            dict(tensors),
            storage_writer=writer,
            planner=DefaultSavePlanner(flatten_state_dict=False),
            no_dist=dist_context.world_size == 1,
        )
    name = rank_shard_name(stem, dist_context.rank, dist_context.world_size)
    return dict(dist_context.all_gather((name, dist_context.all_or_raise(writer.result))))


def load_into(
    tensors: Mapping[str, Tensor], source: TensorSource, dist_context: DistributedContext
) -> None:
    """Read tensors into memory that is there; all processes must ask for it, each reads what it holds.

    Args:
        tensors: Sharded in whatever way, or not, of shapes as the source has them; other types are converted to.
        source: Where they are, however many processes wrote it.
        world: All processes.

    Raises:
        UserError: If this process cannot read.
        EndedElsewhereError: If another one cannot.
    """
    reader = TensorSourceReader(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        checkpoint.load(
            dict(tensors),
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False),
            no_dist=dist_context.world_size == 1,
        )
    dist_context.all_or_raise(reader.result)


def read_sharded_tensors(
    source: TensorSource,
    mesh: DeviceMesh,
    dist_context: DistributedContext,
    replicated: Collection[str] = (),
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """All tensors of a source as FSDP2 holds them: sharded by rows; those without rows whole.

    Args:
        source: Where they are.
        mesh: All processes; their devices are where the rows go.
        world: All processes.
        undivided: Names of tensors that every process has whole, though they have rows: a model's buffers.
        dtype: Convert what has rows to it.

    Raises:
        UserError: If this process cannot read.
        EndedElsewhereError: If another one cannot.
    """
    tensors: dict[str, Tensor] = {}
    for name in source.names:
        entry = source.info(name)
        kept = dtype if dtype is not None and entry.shape else entry.dtype
        if entry.shape and name not in replicated:
            tensors[name] = _empty_sharded(entry.shape, kept, mesh)
        else:
            device = get_mesh_device(mesh) if entry.shape else "cpu"
            tensors[name] = torch.empty(entry.shape, dtype=kept, device=device)
    load_into(tensors, source, dist_context)
    return tensors


def read_sharded_model(
    config: ModelConfig,
    source: TensorSource,
    mesh: DeviceMesh,
    dist_context: DistributedContext,
    dtype: torch.dtype | None = None,
) -> TransformerLM:
    """A model of this config with these weights, divided by FSDP2; no process ever has more than its own rows.

    Args:
        config: Checked.
        source: Of the weights.
        mesh: All processes.
        world: All processes.
        dtype: Convert the weights to it.

    Raises:
        UserError: If weights and config do not agree.
        EndedElsewhereError: If another process cannot read.
    """
    model = build_meta_model(config, source)
    buffers = [name for name, _ in model.named_buffers()]
    apply_fsdp(model, mesh)
    model.load_state_dict(
        read_sharded_tensors(source, mesh, dist_context, buffers, dtype), assign=True
    )
    return model


def _empty_sharded(shape: tuple[int, ...], dtype: torch.dtype, mesh: DeviceMesh) -> Tensor:
    rows = get_shard_rows(shape[0], mesh.get_local_rank(), mesh.size())
    own = (rows.stop - rows.start, *shape[1:])
    return from_local(torch.empty(own, dtype=dtype, device=get_mesh_device(mesh)), shape, mesh)


class _DeferredError:
    """What went wrong in this process, told when all are done: none waits for one that has left."""

    error: BaseException | None = None

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self.error = error

    def _raise_deferred(self) -> None:
        if self.error is not None:
            raise self.error


class RankShardWriter(StorageWriter, _DeferredError):
    """Writes this process's items into one file, tensor by tensor.

    Args:
        folder: Exists.
        stem: Of the file's name.
        world: All processes.
    """

    def __init__(self, folder: Path, stem: str, dist_context: DistributedContext) -> None:
        self.folder, self.path = (
            folder,
            folder / rank_shard_name(stem, dist_context.rank, dist_context.world_size),
        )
        self.digest = ""

    def result(self) -> str:
        """The file's SHA-256.

        Raises:
            DiskError: If it could not be written.
        """
        self._raise_deferred()
        return self.digest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a writer writes once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the folder is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """All but the rows that are none."""
        return replace(plan, items=[item for item in plan.items if not _is_empty_shard(item)])

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write, also where there is nothing to write: so all files are there."""
        self._attempt(lambda: self._write(plan, planner))
        return _completed_future([WriteResult(item.index, 0, None) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing: every file says what is in it."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Asked where torch is to find out who writes a folder."""
        return False

    def _write(self, plan: SavePlan, planner: SavePlanner) -> None:
        if not self.folder.is_dir():
            raise RunError(
                f"{self.folder}, made by the first process, is not there for this one: the folder of a run "
                "must be on a file system that all its machines share"
            )
        items = {item.index.fqn: item for item in plan.items}
        places, entries = {}, []
        for name, item in items.items():
            assert item.tensor_data is not None
            chunk = item.tensor_data.chunk
            places[name] = list(chunk.offsets)
            entries.append(TensorInfo(name, item.tensor_data.properties.dtype, tuple(chunk.sizes)))

        def make(name: str) -> Tensor:
            tensor = planner.resolve_data(items[name])
            assert isinstance(tensor, Tensor)
            return tensor

        self.digest = write_safetensors(
            self.path, entries, make, metadata=make_shard_metadata(places)
        )
        fsync_path(self.path)


class TensorSourceReader(StorageReader, _DeferredError):
    """Reads rows of any source, each when it is asked for.

    Args:
        source: Looked at already: its tensors are there.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source

    def result(self) -> None:
        """Raise what went wrong, if anything did."""
        self._raise_deferred()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a reader reads once."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every tensor as one piece: the source finds the files of its rows."""
        return Metadata(
            {name: _single_chunk_metadata(self.source.info(name)) for name in self.source.names}
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the files are found."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """All but the rows that are none."""
        return replace(plan, items=[item for item in plan.items if math.prod(item.lengths)])

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read, one tensor in memory at a time."""
        for item in plan.items:
            self._attempt(lambda item=item: self._read(item, planner))  # type: ignore[misc]
            if self.error is not None:
                break
        return _completed_future(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Asked where torch is to find out who reads a folder."""
        return False

    def _read(self, item: ReadItem, planner: LoadPlanner) -> None:
        name, starts, lengths = item.storage_index.fqn, item.storage_offsets, item.lengths
        if lengths:
            rows = self.source.read_rows(name, starts[0], starts[0] + lengths[0])
            columns = zip(starts[1:], lengths[1:], strict=True)
            found = rows[(slice(None), *(slice(s, s + n) for s, n in columns))]
        else:
            found = self.source.read(name)
        target = planner.resolve_tensor(item).detach()
        target.copy_(found)
        planner.commit_tensor(item, target)


def _is_empty_shard(item: WriteItem) -> bool:
    """Whether a process holds no row of a tensor that has some."""
    assert item.tensor_data is not None
    return not math.prod(item.tensor_data.chunk.sizes) and bool(math.prod(item.tensor_data.size))


def _single_chunk_metadata(entry: TensorInfo) -> TensorStorageMetadata:
    size = torch.Size(entry.shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    return TensorStorageMetadata(TensorProperties(dtype=entry.dtype), size, [chunk])


def _completed_future(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
