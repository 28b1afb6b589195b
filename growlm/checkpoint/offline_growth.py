"""Grow a checkpoint on disk, tensor by tensor: peak memory is about one tensor, whatever the model's size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from growlm.checkpoint.checkpoint_folder import (
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    atomic_folder,
    list_sidecar_files,
    read_skeleton,
    write_model_entries,
)
from growlm.checkpoint.grown_tensors import GrownTensors
from growlm.checkpoint.model_class import describe_model
from growlm.checkpoint.optimizer_files import read_state_infos
from growlm.checkpoint.safetensors_io import TensorFiles, TensorInfo, write_tensors
from growlm.checkpoint.sidecar_files import check_sidecar_files, copy_sidecar_files
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

ByteProgress = Callable[[int, int], None]
"""Callback for progress, called with the bytes written and the total bytes."""


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
    model, record = read_skeleton(source, trust=trust)
    try:
        growth_map = build_growth_map(model, operators)
        grown = build_with_config(model, growth_map.new_config)
        ties = resolve_ties(grown, growth_map)
    except UserError:
        raise
    except ValueError as error:  # about labels of the model's own class
        raise UserError("checkpoint", source, str(error)) from error
    weights = TensorFiles(source, WEIGHTS_STEM)
    check_tensor_shapes(weights, growth_map.old_shapes, "checkpoint")
    states = None
    if optimizer_state == "carry" and TensorFiles.exist(source, OPTIMIZER_STEM):
        states = _GrownOptimizerStates(TensorFiles(source, OPTIMIZER_STEM), growth_map)
    rng = GrowthRng(seed, boundary_index)
    grown_weights = GrownTensors(weights, growth_map, rng, ties)
    entries = [grown_weights.info(name) for name in grown_weights.names]
    total = sum(entry.nbytes for entry in entries + (states.infos if states else []))
    sidecar_files = list_sidecar_files(source)
    check_target_folder(target, total, sidecar_files)
    count = accumulate_progress(progress, total)
    with create_target_folder(target) as (partial, digests), torch.no_grad(), rng:
        digests |= write_tensors(partial, WEIGHTS_STEM, entries, grown_weights.read, count)
        if states is not None:
            digests |= write_tensors(partial, OPTIMIZER_STEM, states.infos, states.make, count)
        grown_from = {"operators": operators_to_dicts(operators), "seed": seed}
        grown_from["boundary_index"] = boundary_index
        copy_sidecar_files(sidecar_files, partial)
        write_model_entries(partial, describe_model(grown), record | {"grown_from": grown_from})
    return growth_map.with_rounding({entry.name: entry.dtype for entry in entries})


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
    if target.exists():
        raise UserError("out", target, "already exists")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError("out", target, f"{folder} is not a writable folder")
    needed = nbytes + sum(file.stat().st_size for file in sidecar_files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        reason = f"needs {format_bytes(needed)}; the disk has {format_bytes(free)} free"
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


class _GrownOptimizerStates:
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
