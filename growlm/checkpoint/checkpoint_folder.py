"""Save and load a checkpoint folder: config, weights, optimizer state and manifest.

A folder holds `config.json`, `model.safetensors`, `optimizer.safetensors` (optional) and `manifest.json`. It is
written under a temporary name and renamed once complete, so a folder with its final name is never partial. The
manifest has the checksum of every file; a file that does not match is not loaded.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict, overload

import torch
from torch import Tensor, nn

from growlm.checkpoint.consolidated import write_consolidated
from growlm.checkpoint.model_class import (
    CLASS_KEYS,
    build_described_model,
    describe_model,
    names_classes,
    parse_model_config,
)
from growlm.checkpoint.safetensors_io import (
    INDEX_SUFFIX,
    TensorFiles,
    TensorSource,
    fsync_path,
)
from growlm.checkpoint.weight_validation import build_meta_model, check_tensor_shapes
from growlm.distributed.process_group import DistributedContext
from growlm.growth.model_protocol import first_names, load_weights
from growlm.growth.optimizer_state import ParameterState
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import DiskError, UserError
from growlm.storage.input_files import lexists, read_json
from growlm.storage.integrity import MANIFEST, check_manifest, write_manifest
from growlm.storage.locks import lock_for_creation
from growlm.storage.sidecar_files import CHAT_TEMPLATE_FOLDER, copy_sidecar_files

CHECKPOINT_FORMAT = "growlm/2"
"""Format that is written; its models have parts. Those of `growlm/1` were flat."""
READABLE_FORMATS = ("growlm/1", CHECKPOINT_FORMAT)
CONFIG_NAME = "config.json"
WEIGHTS_STEM = "model"
OPTIMIZER_STEM = "optimizer"


class GrowthRecord(TypedDict):
    """The `grown_from` entry of a checkpoint's `config.json`: the operators that made it from another one."""

    operators: list[dict[str, dict[str, Any]]]


class CheckpointRecord(TypedDict):
    """The optional entries of `config.json` that growlm reads, besides `format` and `model`."""

    tokenizer: NotRequired[str]
    grown_from: NotRequired[GrowthRecord]
    huggingface: NotRequired[dict[str, Any]]


def save_model(
    model: nn.Module,
    folder: str | Path,
    record: dict[str, Any],
    states: Mapping[str, ParameterState] | None = None,
    sidecar_files: Iterable[Path] = (),
    dist_context: DistributedContext | None = None,
    create_parents: bool = True,
    more_tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a model to a new checkpoint folder.

    Args:
        model: Model whose weights are written in their own dtype; sharded weights are gathered one by one. One of
            a class of your own is named by it, and has a `config` (see docs/own_models.md).
        folder: Folder to create; must not exist.
        record: Further entries of `config.json` (phase, step, tokenizer ...), plain JSON values.
        states: Optimizer state by parameter name; None to leave it out.
        sidecar_files: Files to copy next to the weights, such as a tokenizer.
        dist_context: Process group of the run, if it has several processes: all must call, rank 0 writes.
        create_parents: Whether to create missing parent folders.
        more_tensors: Further tensors, by first part of the file's name and by name.

    Raises:
        FileExistsError: If the folder exists.
        LockedError: If another process is writing it.
        UserError: If a sidecar file is a link that leads out of its folder, or the model's own config or class
            could not be read again.
        DiskError: If it cannot be written; nothing is left behind.
        PeerFailedError: On the other ranks, if rank 0 cannot write it.
    """
    dist_context = dist_context or DistributedContext()
    entries = describe_model(model)
    with atomic_folder(Path(folder), dist_context, create_parents) as (partial, digests):
        digests |= write_consolidated(partial, WEIGHTS_STEM, dict(model.state_dict()), dist_context)
        if states is not None:
            digests |= write_consolidated(
                partial, OPTIMIZER_STEM, flatten_states(states), dist_context
            )

        for stem, tensors in (more_tensors or {}).items():
            digests |= write_consolidated(partial, stem, tensors, dist_context)

        def write_rest() -> None:
            copy_sidecar_files(sidecar_files, partial)
            write_model_entries(partial, entries, record)

        dist_context.run_on_rank0(write_rest)


def list_sidecar_files(folder: Path) -> list[Path]:
    """List a checkpoint's files other than tensors, config and manifest: those of its tokenizer."""
    own_names = (CONFIG_NAME, MANIFEST)
    tensor_suffixes = (".safetensors", INDEX_SUFFIX)
    files = (
        path
        for path in sorted(folder.iterdir())
        if path.is_file() or (path.is_dir() and path.name == CHAT_TEMPLATE_FOLDER)
    )
    return [p for p in files if p.name not in own_names and not p.name.endswith(tensor_suffixes)]


def flatten_states(states: Mapping[str, ParameterState]) -> dict[str, Tensor]:
    """Return the optimizer state under the tensor names used in files: `parameter.entry`."""
    return {f"{name}.{entry}": t for name, state in states.items() for entry, t in state.items()}


@contextmanager
def atomic_folder(
    folder: Path, dist_context: DistributedContext | None = None, create_parents: bool = True
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Write a folder atomically: rename it into place if the block succeeds, remove it otherwise.

    Args:
        folder: Final path of the folder; must not exist.
        dist_context: Process group, if several processes fill the folder: a failure in the block on one rank
            must be raised on all ranks, and no rank may write once rank 0 has left the block.
        create_parents: Whether to create missing parent folders.

    Yields:
        The temporary folder, and a dictionary to which the caller may add checksums that it knows, by file name.

    Raises:
        FileExistsError: If the folder exists.
        LockedError: If another process is writing a folder of this name.
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
    """The folder to write exists already; unlike other OS errors, not reported as a disk error."""


@contextmanager
def _partial_folder(folder: Path, partial: Path, create_parents: bool) -> Iterator[None]:
    """Lock and create the temporary folder; remove it, and parents made for it, if the block fails."""
    new_parents = [parent for parent in folder.parents if not parent.exists()]
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
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, _FolderExistsError):
            raise DiskError(folder, error) from error
        raise


@contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _commit_folder(folder: Path, partial: Path, digests: dict[str, str]) -> None:
    write_manifest(partial, digests)
    for path in partial.rglob("*"):
        fsync_path(path)
    partial.rename(folder)
    fsync_path(folder.parent)


def write_config(folder: Path, config: ModelConfig, record: Mapping[str, Any]) -> None:
    """Write `config.json` of a `TransformerLM`."""
    write_model_entries(folder, {"model": dataclasses.asdict(config)}, record)


def write_model_entries(
    folder: Path, entries: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write `config.json`, the file that marks a folder as a checkpoint.

    Args:
        folder: Folder to write to.
        entries: Result of `describe_model`.
        record: Further entries.
    """
    content = make_config_content(entries, record)
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


def make_config_content(entries: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint's `config.json`; see `write_model_entries`."""
    return {"format": CHECKPOINT_FORMAT, **entries, **record}


def read_config(folder: Path, key: str = "checkpoint") -> tuple[ModelConfig, dict[str, Any]]:
    """Read the model config and the record (the other entries of `config.json`) of a `TransformerLM`.

    Args:
        folder: Checkpoint folder.
        key: Setting that named the folder, for messages.

    Raises:
        UserError: If the folder is not a growlm checkpoint, or has a model of another class.
    """
    record = _read_entries(folder, key)
    if named := names_classes(record):
        reason = (
            f"has a model of {' and '.join(named)}, which is built by growlm grow and growlm verify, and by "
            "load_model(folder, trust=[...]), but not here"
        )
        raise UserError(key, folder, reason)
    try:
        return parse_model_config(record.pop("model", None)), record
    except ValueError as error:
        raise UserError(
            key, folder, f"{CONFIG_NAME} does not describe a valid model: {error}"
        ) from error


def _read_entries(folder: Path, key: str) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not lexists(path):
        raise UserError(key, folder, _explain_missing_checkpoint(folder))
    if lexists(folder / MANIFEST):
        check_manifest(folder, key, [CONFIG_NAME])
    record = read_json(path, key, folder, CheckpointRecord)
    if record.pop("format", None) not in READABLE_FORMATS:
        if "model_type" in record or "architectures" in record:
            reason = (
                "is a Hugging Face model, and this needs a growlm checkpoint: "
                f"python -m growlm.convert source={folder} out=DIR to=growlm"
            )
            raise UserError(key, folder, reason)
        known = " or ".join(READABLE_FORMATS)
        raise UserError(key, folder, f"{CONFIG_NAME} is not in format {known}")
    return record


def read_skeleton(
    folder: Path, key: str = "checkpoint", trust: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint's model, of any class, without memory for its weights, and its record.

    Args:
        folder: Checkpoint folder.
        key: Setting that named the folder, for messages.
        trust: Packages whose classes may be built, if the checkpoint names one.

    Raises:
        UserError: If the folder is not a growlm checkpoint, or its model's class is not trusted.
    """
    record = _read_entries(folder, key)
    if names_classes(record):
        model = build_described_model(record, folder, key, trust)
        return model, {k: v for k, v in record.items() if k not in ("model", *CLASS_KEYS)}
    config, record = read_config(folder, key)
    with torch.device("meta"):
        return TransformerLM(config), record


def explain_missing_folder(folder: Path) -> str:
    """Return why there is no such folder; one named like a model of the Hub has to be downloaded first."""
    if len(folder.parts) == 2 and not folder.parent.exists() and ".." not in folder.parts:
        download = f"hf download {folder.as_posix()} --local-dir DIR"
        return f"there is no such folder (a model of the Hugging Face Hub is read from one: {download})"
    return "there is no such folder"


def _explain_missing_checkpoint(folder: Path) -> str:
    if not folder.is_dir():
        return explain_missing_folder(folder)
    names = sorted(path.parent.name for path in folder.glob(f"checkpoints/*/{CONFIG_NAME}"))
    if names:
        listed = ", ".join(f"checkpoints/{name}" for name in names)
        return f"is a run folder; its checkpoints are {listed}"
    return f"has no readable {CONFIG_NAME}"


@overload
def load_model(folder: str | Path, key: str = ...) -> tuple[TransformerLM, dict[str, Any]]: ...


@overload
def load_model(
    folder: str | Path, key: str = ..., *, trust: Sequence[str]
) -> tuple[nn.Module, dict[str, Any]]: ...


def load_model(
    folder: str | Path, key: str = "checkpoint", *, trust: Sequence[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint's model, tensor by tensor, and its record.

    Args:
        folder: Checkpoint folder.
        key: Setting that named the folder, for messages.
        trust: Packages whose classes may be built, if the checkpoint names one; None for `TransformerLM` only.

    Raises:
        UserError: If the folder is not a growlm checkpoint, its model's class is not trusted, or weights and
            config do not match.
    """
    folder = Path(folder)
    if trust is not None and names_classes(_read_entries(folder, key)):
        model, record = read_skeleton(folder, key, trust)
        files = TensorFiles(folder, WEIGHTS_STEM, key)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_tensor_shapes(files, shapes, key)
        weights = {name: files.read(name) for name in files.names}
        for name, first in first_names(model).items():
            two = weights[name].nan_to_num(), weights[first].nan_to_num()
            if name != first and not torch.equal(*two):
                reason = (
                    f"{first} and {name} are one tensor of the model, but differ in the weights"
                )
                raise UserError(key, folder, reason)
        load_weights(model, weights)
        return model, record
    config, record = read_config(folder, key)
    return read_model(config, TensorFiles(folder, WEIGHTS_STEM, key)), record


def read_model(
    config: ModelConfig,
    source: TensorSource,
    in_memory: bool = False,
    dtype: torch.dtype | None = None,
) -> TransformerLM:
    """Build a model with the weights of a tensor source.

    Args:
        config: Validated model config.
        source: Source of the weights.
        in_memory: Whether to copy the weights, so that nothing stays mapped from the files.
        dtype: Dtype to convert the weights to; None to keep theirs.

    Raises:
        UserError: If weights and config do not match.
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


def read_optimizer_states(folder: str | Path) -> dict[str, ParameterState]:
    """Read a checkpoint's optimizer state by parameter name; empty if none was saved."""
    folder = Path(folder)
    if not TensorFiles.exist(folder, OPTIMIZER_STEM):
        return {}
    files = TensorFiles(folder, OPTIMIZER_STEM)
    return unflatten_states({name: files.read(name) for name in files.names})


def unflatten_states(tensors: Mapping[str, Tensor]) -> dict[str, ParameterState]:
    """Return the optimizer state by parameter name; the inverse of `flatten_states`."""
    states: dict[str, ParameterState] = {}
    for full_name, tensor in tensors.items():
        name, _, entry = full_name.rpartition(".")
        states.setdefault(name, {})[entry] = tensor
    return states
