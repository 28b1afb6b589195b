"""The state of a run on disk: a model's folder, and beside the model all that training goes on from.

`resume/<global step>/` (`state_folder`) holds what `artefact.py` writes, and

    state.json              where the run stands, plain JSON
    progress.safetensors    sums and random states
    callbacks.pt            what the user's own callbacks keep; tensors and plain values only

Where weights are sharded, every process writes its own rows of them and of the optimizer's state, into files of
its own (`parts.py`). Any number of processes can read them, each what it will hold.

Written whole or not at all; the newest two are kept.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growlm.checkpoint.checkpoint_folder import (
    CONFIG_NAME,
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    atomic_folder,
    flatten_states,
    read_config,
    read_model,
    unflatten_states,
    write_config,
)
from growlm.checkpoint.consolidated import write_consolidated
from growlm.checkpoint.optimizer_files import read_state_infos
from growlm.checkpoint.safetensors_io import TensorFiles
from growlm.checkpoint.weight_validation import get_state_dict_shapes
from growlm.distributed.dtensors import is_sharded
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import ParameterState
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json, resolve_regular_file
from growlm.storage.integrity import JSON_OBJECT, check_manifest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

KEEP_LAST = 2
STATE_FILE = "state.json"
PROGRESS_STEM = "progress"
CALLBACKS_FILE = "callbacks.pt"
RESUME_SETTING = "resume"


def write_resume_state(
    folder: Path,
    global_step: int,
    model: TransformerLM,
    states: Mapping[str, ParameterState],
    tensors: Mapping[str, Tensor],
    record: dict[str, Any],
    callbacks: Mapping[str, Any] | None = None,
    dist_context: DistributedContext | None = None,
    create_parents: bool = True,
) -> None:
    """Write a state and let go of all but the newest two.

    Args:
        folder: Of the state, from `state_folder`.
        global_step: Steps of the run.
        model: Its weights, straight from memory; sharded or not.
        states: The optimizer's, by parameter name; sharded as the weights are.
        tensors: What else is a tensor; the first process's are written.
        record: What else is JSON; likewise.
        callbacks: What callbacks keep: tensors and plain values; likewise.
        world: All processes of the run, if it has several: all must ask for it.
        makes_parents: Whether the folder that it goes into is made where it is missing.

    Raises:
        DiskError: If it cannot be written; the states before it stay.
        EndedElsewhereError: If another process cannot write it.
    """
    dist_context = dist_context or DistributedContext()
    with atomic_folder(folder, dist_context, create_parents) as (partial, digests):
        digests |= _write_tensors(partial, WEIGHTS_STEM, dict(model.state_dict()), dist_context)
        digests |= _write_tensors(partial, OPTIMIZER_STEM, flatten_states(states), dist_context)

        def write_rest() -> dict[str, str]:
            (partial / STATE_FILE).write_text(json.dumps(record) + "\n")
            if callbacks:
                torch.save(dict(callbacks), partial / CALLBACKS_FILE)
            write_config(partial, model.config, {"global_step": global_step})
            return write_consolidated(partial, PROGRESS_STEM, tensors, DistributedContext())

        digests |= dist_context.run_on_rank0(write_rest)
    if dist_context.is_rank0:
        for old in list_state_folders(folder.parent)[:-KEEP_LAST]:
            shutil.rmtree(old)


def _write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dist_context: DistributedContext
) -> dict[str, str]:
    """In parts, if every process has its own; else as one process writes them."""
    if dist_context.world_size > 1 and any(map(is_sharded, tensors.values())):
        from growlm.checkpoint.distributed_checkpoint import (
            write_rank_shards,  # loads slowly, and few need it
        )

        return write_rank_shards(folder, stem, tensors, dist_context)
    return write_consolidated(folder, stem, tensors, dist_context)


def state_folder(resume_dir: Path, global_step: int, untrained_phase: int | None = None) -> Path:
    """Where a state goes; names sort as the states follow each other.

    Args:
        resume_dir: Of the run.
        global_step: Steps of the run.
        untrained_phase: Index of the phase, if it has no steps and so ends where the one before it ended.
    """
    suffix = "" if untrained_phase is None else f"-{untrained_phase:03d}"
    return resume_dir / f"{global_step:09d}{suffix}"


def list_state_folders(resume_dir: Path) -> list[Path]:
    """All states, oldest first."""
    return sorted(path for path in resume_dir.glob("[0-9]*") if path.is_dir())


@dataclass(frozen=True)
class ResumeState:
    """A state whose every file is what was written.

    Without a mesh its tensors are read whole, by whoever asks. With one, all processes must ask, and each gets
    its own rows as FSDP2 deals them out, on its device, whoever wrote them.
    """

    folder: Path
    record: dict[str, Any]
    weights: TensorFiles
    optimizer: TensorFiles
    progress: TensorFiles
    dist_context: DistributedContext

    @staticmethod
    def open(
        folder: Path, dist_context: DistributedContext | None = None, is_checked: bool = False
    ) -> ResumeState:
        """Compare every file with the manifest.

        Args:
            folder: Of the state.
            world: All processes of the run, if it has several.
            is_checked: Whether another one of them has compared.

        Raises:
            UserError: Naming the first file that is missing or damaged.
        """
        weights, optimizer, progress = (
            TensorFiles(folder, stem, RESUME_SETTING, is_checked)
            for stem in (WEIGHTS_STEM, OPTIMIZER_STEM, PROGRESS_STEM)
        )
        if not is_checked:
            has_callbacks = lexists(folder / CALLBACKS_FILE)
            others = [CONFIG_NAME, STATE_FILE, *([CALLBACKS_FILE] if has_callbacks else [])]
            check_manifest(folder, RESUME_SETTING, others)
        record = read_json(folder / STATE_FILE, RESUME_SETTING, folder, JSON_OBJECT, allow_nan=True)
        return ResumeState(
            folder, record, weights, optimizer, progress, dist_context or DistributedContext()
        )

    def load_model(self, mesh: DeviceMesh | None = None) -> TransformerLM:
        """The model, in memory of its own.

        Args:
            mesh: All processes, for a model divided among them.

        Raises:
            UserError: If weights and config do not agree.
        """
        config, _ = read_config(self.folder, RESUME_SETTING)
        if mesh is not None:
            from growlm.checkpoint.distributed_checkpoint import (
                read_sharded_model,  # loads slowly, and few need it
            )

            return read_sharded_model(config, self.weights, mesh, self.dist_context)
        return read_model(config, self.weights, in_memory=True)

    def read_optimizer_states(self, mesh: DeviceMesh | None = None) -> dict[str, ParameterState]:
        """The optimizer's state by parameter name, in memory of its own.

        Args:
            mesh: All processes, for states divided as the model is.

        Raises:
            UserError: If one belongs to no parameter of the model, or does not fit it.
        """
        config, _ = read_config(self.folder, RESUME_SETTING)
        read_state_infos(self.optimizer, get_state_dict_shapes(config))
        if mesh is not None:
            from growlm.checkpoint.distributed_checkpoint import read_sharded_tensors

            return unflatten_states(read_sharded_tensors(self.optimizer, mesh, self.dist_context))
        return unflatten_states({n: self.optimizer.read(n).clone() for n in self.optimizer.names})

    def load_tensors(self) -> dict[str, Tensor]:
        """The other tensors, in memory of their own."""
        return {name: self.progress.read(name).clone() for name in self.progress.names}

    def load_callbacks(self) -> dict[str, Any]:
        """What callbacks kept.

        Raises:
            UserError: If the file holds anything but tensors and plain values; nothing of it is run.
        """
        path = self.folder / CALLBACKS_FILE
        if not lexists(path):
            return {}
        target = resolve_regular_file(path, RESUME_SETTING, self.folder)
        allowed = "holds more than tensors and plain values, and is not read"
        if not _is_uncompressed(target):
            raise UserError(RESUME_SETTING, path, allowed)
        try:
            with warnings.catch_warnings(action="ignore"):  # what it would say is said below
                kept = torch.load(target, weights_only=True)
        except Exception as error:  # of many types, for what is no such file
            raise UserError(RESUME_SETTING, path, allowed) from error
        if not isinstance(kept, dict) or not all(isinstance(name, str) for name in kept):
            raise UserError(RESUME_SETTING, path, "must be a mapping by the names of callbacks")
        return kept


def _is_uncompressed(path: Path) -> bool:
    """Whether a file is an archive that unpacks to no more than it is large, as torch writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
