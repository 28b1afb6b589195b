"""Grow a checkpoint on disk, tensor by tensor: peak memory is about one tensor, whatever the model's size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growlm.checkpoint.cast_tensors import CastTensors
from growlm.checkpoint.checkpoint_folder import (
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    atomic_folder,
    list_sidecar_files,
    make_config_content,
    read_skeleton,
    write_model_entries,
)
from growlm.checkpoint.grown_tensors import GrownTensors
from growlm.checkpoint.model_class import describe_model
from growlm.checkpoint.optimizer_files import read_state_infos
from growlm.checkpoint.safetensors_io import (
    TensorFiles,
    TensorInfo,
    TensorSource,
    read_in_parts,
    write_tensors,
)
from growlm.checkpoint.weight_validation import check_tensor_shapes
from growlm.growth.eight_bit_moments import scale_key
from growlm.growth.grow_model import Operator, build_growth_map, resolve_ties
from growlm.growth.growth_map import GrowthMap, TensorMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_protocol import build_with_config
from growlm.growth.operators.registry import operators_to_dicts
from growlm.growth.optimizer_state import (
    FACTORED_ENTRIES,
    ParameterState,
    expected_state_shapes,
    grow_parameter_state,
)
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_bytes
from growlm.storage.locks import LockedError
from growlm.storage.sidecar_files import (
    check_sidecar_files,
    copy_sidecar_files,
    sidecar_bytes,
)

ByteProgress = Callable[[int, int], None]
"""Callback for progress, called with the bytes written and the total bytes."""


@dataclass(frozen=True)
class CheckpointGrowth:
    """A growth of a checkpoint of growlm's that has been checked; nothing is written yet."""

    growth_map: GrowthMap
    """Effect of the operators."""
    model: nn.Module
    """Model before the growth, without memory for its weights."""
    grown: nn.Module
    """Model after it, likewise."""
    source: TensorSource
    """Weights before the growth."""
    weights: GrownTensors
    """Weights of the grown model, each computed when it is read."""
    states: GrownOptimizerStates | None
    """Its optimizer state; None if there is none, or it is left out."""
    omitted: tuple[str, ...]
    """Parts of the source that are left out, as text."""
    sidecar_files: Sequence[Path]
    """Files to copy."""
    entries: Mapping[str, Any]
    """Entries of `config.json` that the grown model can be built from."""
    record: Mapping[str, Any]
    """Further entries of `config.json`."""
    rng: GrowthRng

    @property
    def content(self) -> dict[str, Any]:
        """Content of `config.json`."""
        return make_config_content(self.entries, self.record)

    @property
    def infos(self) -> list[TensorInfo]:
        """Names, dtypes and shapes of all tensors that are written."""
        weights = [self.weights.info(name) for name in self.weights.names]
        return weights + (self.states.infos if self.states else [])

    def write(
        self,
        target: Path,
        progress: ByteProgress = lambda done, total: None,
        finish: Callable[[Path], None] = lambda folder: None,
        key: str = "checkpoint",
    ) -> None:
        """Write the grown checkpoint, one tensor in memory at a time.

        Args:
            target: Folder to create; must not exist.
            progress: Function called after every tensor.
            finish: Function that checks the folder before it gets its name.
            key: Setting that named the source, for messages.

        Raises:
            UserError: If the target exists, or the disk has too little space. Nothing is left behind.
        """
        total = sum(info.nbytes for info in self.infos)
        check_target_folder(target, total, self.sidecar_files, key)
        count = accumulate_progress(progress, total)
        entries = [self.weights.info(name) for name in self.weights.names]
        with create_target_folder(target) as (folder, digests), torch.no_grad(), self.rng:
            read = partial(read_in_parts, self.weights)
            digests |= write_tensors(folder, WEIGHTS_STEM, entries, read, count)
            if self.states is not None:
                infos, make = self.states.infos, self.states.make
                digests |= write_tensors(folder, OPTIMIZER_STEM, infos, make, count)
            copy_sidecar_files(self.sidecar_files, folder)
            write_model_entries(folder, self.entries, self.record)
            finish(folder)


def prepare_checkpoint_growth(
    source: Path,
    operators: Sequence[Operator],
    *,
    seed: int = 0,
    boundary_index: int = 0,
    optimizer_state: str = "carry",
    dtype: torch.dtype | None = None,
    trust: Sequence[str] = (),
    key: str = "checkpoint",
    checks_values: bool = True,
) -> CheckpointGrowth:
    """Check a growth of a checkpoint folder; see `grow_checkpoint`.

    Args:
        source: Checkpoint folder to grow.
        operators: Growth operators, applied in order.
        seed: Seed of noise, routers and filler columns.
        boundary_index: Index of this growth in its run; part of the seed.
        optimizer_state: `carry` to grow the source's optimizer state too, `reset` to leave it out.
        dtype: Dtype that the weights are converted to before they are grown; None for that of the files.
        trust: Packages whose classes may be built, if the checkpoint names one.
        key: Setting that named the source, for messages.
        checks_values: Whether to compare the weights with their checksums; if false, only headers are read.

    Raises:
        UserError: If the source is not a checkpoint, its model's class is not trusted, or an operator cannot be
            applied.
    """
    model, record = read_skeleton(source, key, trust)
    try:
        growth_map = build_growth_map(model, operators)
        grown = build_with_config(model, growth_map.new_config)
        ties = resolve_ties(grown, growth_map)
    except UserError:
        raise
    except ValueError as error:  # about labels of the model's own class
        raise UserError(key, source, str(error)) from error
    files = TensorFiles(source, WEIGHTS_STEM, key, is_checked=not checks_values)
    check_tensor_shapes(files, growth_map.old_shapes, key)
    states = None
    has_states = TensorFiles.exist(source, OPTIMIZER_STEM)
    if optimizer_state == "carry" and has_states:
        state_files = TensorFiles(source, OPTIMIZER_STEM, key, is_checked=not checks_values)
        states = GrownOptimizerStates(state_files, growth_map)
    weights: TensorSource = files if dtype is None else CastTensors(files, dtype)
    rng = GrowthRng(seed, boundary_index)
    return CheckpointGrowth(
        growth_map=growth_map,
        model=model,
        grown=grown,
        source=weights,
        weights=GrownTensors(weights, growth_map, rng, ties),
        states=states,
        omitted=("the optimizer state",) if has_states and states is None else (),
        sidecar_files=list_sidecar_files(source),
        entries=describe_model(grown),
        record=record | {"grown_from": describe_growth(operators, seed, boundary_index)},
        rng=rng,
    )


def describe_growth(
    operators: Sequence[Operator], seed: int, boundary_index: int
) -> dict[str, Any]:
    """Return the entry `grown_from` of the record of a grown model."""
    return {
        "operators": operators_to_dicts(operators),
        "seed": seed,
        "boundary_index": boundary_index,
    }


def grow_checkpoint(
    source: Path,
    target: Path,
    operators: Sequence[Operator],
    *,
    seed: int = 0,
    boundary_index: int = 0,
    optimizer_state: str = "carry",
    trust: Sequence[str] = (),
    progress: ByteProgress = lambda done, total: None,
) -> GrowthMap:
    """Grow a checkpoint folder into a new one, bit for bit as growth in memory does.

    Args:
        source: Checkpoint folder to grow.
        target: Folder to create; must not exist.
        operators: Growth operators, applied in order.
        seed: Seed of noise, routers and filler columns.
        boundary_index: Index of this growth in its run; part of the seed.
        optimizer_state: `carry` to grow the source's optimizer state too, `reset` to leave it out.
        trust: Packages whose classes may be built, if the checkpoint names one.
        progress: Function called after every tensor.

    Returns:
        The growth map that was applied; its description says what was rounded, in half precision.

    Raises:
        UserError: If the source is not a checkpoint, its model's class is not trusted, an operator cannot be
            applied, the target exists, or the disk has too little space. Nothing is left behind.
    """
    growth = prepare_checkpoint_growth(
        source,
        operators,
        seed=seed,
        boundary_index=boundary_index,
        optimizer_state=optimizer_state,
        trust=trust,
    )
    growth.write(target, progress)
    dtypes = {name: growth.weights.info(name).dtype for name in growth.weights.names}
    return growth.growth_map.with_rounding(dtypes)


def accumulate_progress(progress: ByteProgress, total: int) -> Callable[[int], None]:
    """Return a function that adds up the sizes of written tensors and reports the sum to `progress`."""
    done = 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        progress(done, total)

    return count


def check_target_folder(
    target: Path, nbytes: int, sidecar_files: Sequence[Path], key: str = "checkpoint"
) -> None:
    """Check that the folder of `out` can be created and that the disk has space for its contents.

    Args:
        target: Folder to create.
        nbytes: Size of the tensors in bytes.
        sidecar_files: Files to copy into it.
        key: Setting that named the folder of the sidecar files, for messages.

    Raises:
        UserError: If not, or if a sidecar file is a link that leads out of its folder.
    """
    check_sidecar_files(sidecar_files, key)
    check_target_size(target, nbytes + sidecar_bytes(sidecar_files))


def check_target_size(target: Path, nbytes: int) -> None:
    """Check that the folder of `out` can be created and that the disk has space for its contents.

    Raises:
        UserError: If not.
    """
    if target.exists():
        raise UserError("out", target, "already exists")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError("out", target, f"{folder} is not a writable folder")
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        reason = f"needs {format_bytes(nbytes)}; the disk has {format_bytes(free)} free"
        raise UserError("out", target, reason)


@contextmanager
def create_target_folder(target: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Write the folder that a user's `out` names with `atomic_folder`.

    Raises:
        UserError: If it exists by now, or another process is writing it.
        DiskError: If something cannot be written.
    """
    with ExitStack() as stack:
        try:
            partial_and_digests = stack.enter_context(atomic_folder(target))
        except FileExistsError as error:
            raise UserError("out", target, "already exists") from error
        except LockedError as error:
            reason = f"another process writes it ({error.owner})"
            raise UserError("out", target, reason) from error
        yield partial_and_digests


class GrownOptimizerStates:
    """Optimizer state of the grown model, computed one tensor at a time.

    Raises:
        UserError: If the files hold a state that matches no parameter, or one that growlm cannot grow.
    """

    def __init__(self, files: TensorFiles, growth_map: GrowthMap) -> None:
        self.files = files
        self.source_infos = read_state_infos(files, growth_map.old_shapes, allow_own=False)
        self.tensor_maps: dict[str, TensorMap] = {
            name: tensor_map
            for name, tensor_map in growth_map.tensors.items()
            if tensor_map.source in self.source_infos and not tensor_map.resets_moments
        }
        self.infos = [
            TensorInfo(
                f"{name}.{entry}",
                self._dtype(self.source_infos[t.source or ""], entry, shapes),
                shape,
            )
            for name, t in self.tensor_maps.items()
            for shapes in [expected_state_shapes(self.source_infos[t.source or ""], t.shape)]
            for entry, shape in shapes.items()
        ]
        self._pending: dict[str, ParameterState] = {}

    def make(self, full_name: str) -> Tensor:
        """Compute one tensor; a scale that is computed along with its moment is kept for the next call."""
        name, _, entry = full_name.rpartition(".")
        if entry in self._pending.get(name, {}):
            return self._pending.pop(name)[entry]
        tensor_map = self.tensor_maps[name]
        source = tensor_map.source or ""
        is_separate = entry in self.source_infos[source] and entry not in FACTORED_ENTRIES
        wanted = [entry, scale_key(entry)] if is_separate else list(self.source_infos[source])
        state = {
            part: self.files.read(f"{source}.{part}")
            for part in wanted
            if part in self.source_infos[source]
        }
        grown = grow_parameter_state(tensor_map, state)
        if scale_key(entry) in grown:
            self._pending[name] = {scale_key(entry): grown[scale_key(entry)]}
        return grown[entry]

    def _dtype(
        self, state: dict[str, TensorInfo], entry: str, shapes: dict[str, tuple[int, ...]]
    ) -> torch.dtype:
        if scale_key(entry) in state and scale_key(entry) not in shapes:
            return state[scale_key(entry)].dtype  # the grown moment is not in 8 bits
        part = (
            entry
            if entry in state
            else next(e for e in state if e in (*FACTORED_ENTRIES, "variance"))
        )
        return state[part].dtype
