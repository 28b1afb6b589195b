"""Save and load sharded tensors with `torch.distributed.checkpoint` (DCP), as safetensors files.

DCP plans which rank writes and reads what; the files have the format of `shard_format.py`. torch's own storage
classes are not used: `FileSystemWriter` writes a pickle, and `HuggingFaceStorageWriter`, whose format this is,
first copies everything that a rank writes into one buffer in memory, and has no checksums.
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
    """Write every rank's own rows to a file of its own, without communication; all ranks must call this.

    Args:
        folder: Existing folder, the same on all ranks.
        stem: First part of the file names.
        tensors: Tensors by name; those that are not sharded are written once.
        dist_context: Process group.

    Returns:
        The SHA-256 of every file, by file name.

    Raises:
        DiskError: If this rank cannot write.
        PeerFailedError: If another rank cannot write.
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
    """Read tensors in place; all ranks must call this, and each reads only the rows that it holds.

    Args:
        tensors: Tensors to fill, sharded in any way or not, with the shapes of the source; values are converted
            to their dtypes.
        source: Source of the values, written by any number of ranks.
        dist_context: Process group.

    Raises:
        UserError: If this rank cannot read.
        PeerFailedError: If another rank cannot read.
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
    """Read all tensors of a source as FSDP2 holds them: sharded by rows; scalars are replicated.

    Args:
        source: Source of the tensors.
        mesh: Device mesh of all ranks.
        dist_context: Process group.
        replicated: Names of tensors that every rank holds in full even though they have rows: a model's buffers.
        dtype: Dtype to convert tensors to, except scalars; None to keep theirs.

    Raises:
        UserError: If this rank cannot read.
        PeerFailedError: If another rank cannot read.
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
    """Load a model sharded by FSDP2; no rank ever holds more than its own rows.

    Args:
        config: Validated model config.
        source: Source of the weights.
        mesh: Device mesh of all ranks.
        dist_context: Process group.
        dtype: Dtype to convert the weights to; None to keep theirs.

    Raises:
        UserError: If weights and config do not match.
        PeerFailedError: If another rank cannot read.
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
    local_shape = (rows.stop - rows.start, *shape[1:])
    local = torch.empty(local_shape, dtype=dtype, device=get_mesh_device(mesh))
    return from_local(local, shape, mesh)


class _DeferredFailure:
    """Keep this rank's first error until all ranks are done, so that none waits for a rank that has left."""

    error: BaseException | None = None

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self.error = error

    def _raise_deferred(self) -> None:
        if self.error is not None:
            raise self.error


class RankShardWriter(StorageWriter, _DeferredFailure):
    """DCP storage writer that puts this rank's rows into one safetensors file, tensor by tensor.

    Args:
        folder: Existing folder.
        stem: First part of the file name.
        dist_context: Process group.
    """

    def __init__(self, folder: Path, stem: str, dist_context: DistributedContext) -> None:
        self.folder = folder
        self.path = folder / rank_shard_name(stem, dist_context.rank, dist_context.world_size)
        self.digest = ""

    def result(self) -> str:
        """Return the file's SHA-256.

        Raises:
            DiskError: If it could not be written.
        """
        self._raise_deferred()
        return self.digest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a writer is used once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the folder exists."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Drop empty shards from the plan."""
        return replace(plan, items=[item for item in plan.items if not _is_empty_shard(item)])

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans unchanged."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the file, even one without tensors, so that the set of files is complete."""
        self._attempt(lambda: self._write(plan, planner))
        return _completed_future([WriteResult(item.index, 0, None) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Do nothing: every file describes its own contents."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: DCP must not pick this writer from a path."""
        return False

    def _write(self, plan: SavePlan, planner: SavePlanner) -> None:
        if not self.folder.is_dir():
            raise RunError(
                f"rank 0 created {self.folder}, but this process does not see it: the run folder must be "
                "on a file system that all machines of the run share"
            )
        items = {item.index.fqn: item for item in plan.items}
        offsets, entries = {}, []
        for name, item in items.items():
            assert item.tensor_data is not None
            chunk = item.tensor_data.chunk
            offsets[name] = list(chunk.offsets)
            entries.append(TensorInfo(name, item.tensor_data.properties.dtype, tuple(chunk.sizes)))

        def make(name: str) -> Tensor:
            tensor = planner.resolve_data(items[name])
            assert isinstance(tensor, Tensor)
            return tensor

        self.digest = write_safetensors(
            self.path, entries, make, metadata=make_shard_metadata(offsets)
        )
        fsync_path(self.path)


class TensorSourceReader(StorageReader, _DeferredFailure):
    """DCP storage reader for any `TensorSource`; it reads only the rows that are requested.

    Args:
        source: Validated source.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source

    def result(self) -> None:
        """Raise the first error, if there was one."""
        self._raise_deferred()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader is used once."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Describe every tensor as one chunk: the source itself finds the files that hold the rows."""
        return Metadata(
            {name: _single_chunk_metadata(self.source.info(name)) for name in self.source.names}
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the source is open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Drop empty shards from the plan."""
        return replace(plan, items=[item for item in plan.items if math.prod(item.lengths)])

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the planned rows, one tensor in memory at a time."""
        for item in plan.items:
            self._attempt(lambda item=item: self._read(item, planner))  # type: ignore[misc]
            if self.error is not None:
                break
        return _completed_future(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: DCP must not pick this reader from a path."""
        return False

    def _read(self, item: ReadItem, planner: LoadPlanner) -> None:
        name, starts, lengths = item.storage_index.fqn, item.storage_offsets, item.lengths
        if lengths:
            rows = self.source.read_rows(name, starts[0], starts[0] + lengths[0])
            columns = zip(starts[1:], lengths[1:], strict=True)
            values = rows[(slice(None), *(slice(s, s + n) for s, n in columns))]
        else:
            values = self.source.read(name)
        target = planner.resolve_tensor(item).detach()
        target.copy_(values)
        planner.commit_tensor(item, target)


def _is_empty_shard(item: WriteItem) -> bool:
    """Return whether this rank holds none of the rows of a tensor that is not empty itself."""
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
