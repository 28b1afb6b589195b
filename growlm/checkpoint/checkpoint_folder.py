"""A model's folder: `config.json`, `model.safetensors`, `optimizer.safetensors` where it is kept, `manifest.json`.

Written beside its place and renamed into it, so that a folder of that name is always whole; the manifest has
every file's checksum, and what disagrees with it does not load.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from growlm.checkpoint.consolidated import write_consolidated
from growlm.checkpoint.safetensors_io import (
    INDEX_SUFFIX,
    TensorFiles,
    TensorSource,
    fsync_path,
)
from growlm.checkpoint.sidecar_files import copy_sidecar_files
from growlm.checkpoint.weight_validation import build_meta_model
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import ParameterState
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import DiskError, UserError
from growlm.runtime.field_limits import check_field_types
from growlm.storage.input_files import lexists, read_json
from growlm.storage.integrity import MANIFEST, check_manifest, write_manifest
from growlm.storage.locks import lock_for_creation
from growlm.storage.typed_values import parse_as

CHECKPOINT_FORMAT = "growlm/1"
CONFIG_NAME = "config.json"
WEIGHTS_STEM = "model"
OPTIMIZER_STEM = "optimizer"


class GrowthRecord(TypedDict):
    """How a checkpoint that was grown on disk came from another."""

    operators: list[dict[str, dict[str, Any]]]


class CheckpointRecord(TypedDict):
    """What `config.json` says besides `format` and `model`, as far as anything is read of it."""

    tokenizer: NotRequired[str]
    grown_from: NotRequired[GrowthRecord]
    huggingface: NotRequired[dict[str, Any]]


def save_model(
    model: TransformerLM,
    folder: Path,
    record: dict[str, Any],
    states: Mapping[str, ParameterState] | None = None,
    sidecar_files: Iterable[Path] = (),
    dist_context: DistributedContext | None = None,
    create_parents: bool = True,
) -> None:
    """Write a model.

    Args:
        model: Its weights are written as they are, straight from memory; sharded ones gathered tensor by tensor.
        folder: Made; must not exist.
        record: What else to remember (phase, step, tokenizer ...), plain JSON values.
        states: The optimizer's, by parameter name, if they are to be kept.
        files: Copied beside the weights.
        world: All processes of the run, if it has several: all must ask for it, the first one writes.
        makes_parents: Whether the folder that it goes into is made where it is missing.

    Raises:
        FileExistsError: If the folder exists.
        LockedError: If another process writes it.
        UserError: If one of the files is a link that leads out of its folder.
        DiskError: If it cannot be written; nothing is left behind.
        EndedElsewhereError: In the other processes, if the first one cannot write it.
    """
    dist_context = dist_context or DistributedContext()
    with atomic_folder(folder, dist_context, create_parents) as (partial, digests):
        digests |= write_consolidated(partial, WEIGHTS_STEM, dict(model.state_dict()), dist_context)
        if states is not None:
            digests |= write_consolidated(
                partial, OPTIMIZER_STEM, flatten_states(states), dist_context
            )

        def write_rest() -> None:
            copy_sidecar_files(sidecar_files, partial)
            write_config(partial, model.config, record)

        dist_context.run_on_rank0(write_rest)


def list_sidecar_files(folder: Path) -> list[Path]:
    """What a checkpoint has beside model, optimizer and manifest: its tokenizer."""
    ours = (CONFIG_NAME, MANIFEST)
    tensors = (".safetensors", INDEX_SUFFIX)
    found = (path for path in sorted(folder.iterdir()) if path.is_file())
    return [p for p in found if p.name not in ours and not p.name.endswith(tensors)]


def flatten_states(states: Mapping[str, ParameterState]) -> dict[str, Tensor]:
    """The optimizer's state as it is named in files: `parameter.entry`."""
    return {f"{name}.{entry}": t for name, state in states.items() for entry, t in state.items()}


@contextmanager
def atomic_folder(
    folder: Path, dist_context: DistributedContext | None = None, create_parents: bool = True
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder to fill, which gets its name when the block ends well, and vanishes when it does not.

    Args:
        folder: Its name.
        world: All processes of the run, if several fill it: whatever fails in the block in one of them must fail
            in all, and once the first one leaves the block, none writes any more.
        makes_parents: Whether the folder that it goes into is made where it is missing.

    Yields:
        The folder while it has another name, and the checksums of its files, for those who know some.

    Raises:
        FileExistsError: If the name is taken.
        LockedError: If another process writes a folder of this name.
        DiskError: If something cannot be written.
    """
    dist_context = dist_context or DistributedContext()
    partial = folder.with_name(f".{folder.name}.partial")
    digests: dict[str, str] = {}
    with ExitStack() as stack:
        dist_context.run_on_rank0(
            lambda: stack.enter_context(_partial_folder(folder, partial, create_parents))
        )
        yield partial, digests
        dist_context.run_on_rank0(lambda: _commit_folder(folder, partial, digests))


class _FolderExistsError(FileExistsError):
    """A folder of this name exists."""


@contextmanager
def _partial_folder(folder: Path, partial: Path, create_parents: bool) -> Iterator[None]:
    """Make the partial folder, for this process alone; leave nothing of it behind if the block fails."""
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        if create_parents:
            folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_for_creation(folder), _removed_on_failure(partial):
            if folder.exists():
                raise _FolderExistsError(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield
    except BaseException as error:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, _FolderExistsError):
            raise DiskError(folder, error) from error
        raise


@contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    """Remove the folder if the block fails."""
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _commit_folder(folder: Path, partial: Path, digests: dict[str, str]) -> None:
    write_manifest(partial, digests)
    for path in partial.iterdir():
        fsync_path(path)
    partial.rename(folder)
    fsync_path(folder.parent)


def write_config(folder: Path, config: ModelConfig, record: Mapping[str, Any]) -> None:
    """Write `config.json`, which makes the folder a checkpoint."""
    content = {"format": CHECKPOINT_FORMAT, "model": dataclasses.asdict(config), **record}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


def read_config(folder: Path, key: str = "checkpoint") -> tuple[ModelConfig, dict[str, Any]]:
    """The model's shape, and the record written with it.

    Args:
        folder: Of the checkpoint.
        key: What the user calls it, for the message.

    Raises:
        UserError: If the folder is no checkpoint of ours.
    """
    path = folder / CONFIG_NAME
    if not lexists(path):
        raise UserError(key, folder, _explain_missing_checkpoint(folder))
    if lexists(folder / MANIFEST):
        check_manifest(folder, key, [CONFIG_NAME])
    record = read_json(path, key, folder, CheckpointRecord)
    if record.pop("format", None) != CHECKPOINT_FORMAT:
        raise UserError(key, folder, f"{CONFIG_NAME} is not of format {CHECKPOINT_FORMAT}")
    try:
        config = parse_as(ModelConfig, record.pop("model", None), "model")
        check_field_types(config)
        config.validate()
    except ValueError as error:
        raise UserError(key, folder, f"{CONFIG_NAME} describes no model: {error}") from error
    return config, record


def _explain_missing_checkpoint(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.parent.name for path in folder.glob(f"checkpoints/*/{CONFIG_NAME}"))
    if names:
        return f"is a run; its checkpoints are {', '.join(f'checkpoints/{name}' for name in names)}"
    return f"no readable {CONFIG_NAME} there"


def load_model(folder: Path, key: str = "checkpoint") -> tuple[TransformerLM, dict[str, Any]]:
    """Read a model, tensor by tensor, and its record.

    Args:
        folder: Of the checkpoint.
        key: What the user calls it, for the message.

    Raises:
        UserError: If the folder is no checkpoint of ours, or weights and config do not agree.
    """
    config, record = read_config(folder, key)
    return read_model(config, TensorFiles(folder, WEIGHTS_STEM, key)), record


def read_model(
    config: ModelConfig,
    source: TensorSource,
    in_memory: bool = False,
    dtype: torch.dtype | None = None,
) -> TransformerLM:
    """A model of this config with these weights.

    Args:
        config: Checked.
        files: Of the weights.
        in_memory: Copy the weights at once, so that nothing stays mapped from the files.
        dtype: Convert them to it, in memory then.

    Raises:
        UserError: If weights and config do not agree.
    """
    model = build_meta_model(config, source)
    weights = {}
    for name in source.names:
        tensor = source.read(name)
        if dtype is not None:
            tensor = tensor.to(dtype, copy=in_memory)
        elif in_memory:
            tensor = tensor.clone()
        weights[name] = tensor
    model.load_state_dict(weights, assign=True)
    return model


def read_optimizer_states(folder: Path) -> dict[str, ParameterState]:
    """The optimizer's state by parameter name; empty if it was not kept."""
    if not TensorFiles.exist(folder, OPTIMIZER_STEM):
        return {}
    files = TensorFiles(folder, OPTIMIZER_STEM)
    return unflatten_states({name: files.read(name) for name in files.names})


def unflatten_states(tensors: Mapping[str, Tensor]) -> dict[str, ParameterState]:
    """The optimizer's state by parameter name, of tensors as they are named in files."""
    states: dict[str, ParameterState] = {}
    for full_name, tensor in tensors.items():
        name, _, entry = full_name.rpartition(".")
        states.setdefault(name, {})[entry] = tensor
    return states
