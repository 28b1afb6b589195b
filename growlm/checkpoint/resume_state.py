"""Save and restore resumable training state: a checkpoint folder plus everything else that training needs.

`resume/<global step>/` (see `state_folder`) holds the files of a checkpoint (`checkpoint_folder.py`), and

    state.json              the position in the run, plain JSON
    progress.safetensors    running sums and RNG states
    callbacks.pt            state of the user's own callbacks; tensors and plain values only

Where weights are sharded, every rank writes its own rows of the weights and of the optimizer state to files of its
own (`shard_format.py`). A run can be resumed on a different number of processes.

States are written atomically; the newest two are kept.
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
from growlm.runtime.escaping import summarize_error
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
    """Write a resume state, and remove all but the newest two.

    Args:
        folder: Folder of the state, from `state_folder`.
        global_step: Optimizer steps of the run so far.
        model: Model, sharded or not.
        states: Optimizer state by parameter name, sharded as the weights are.
        tensors: Other tensors to save; those of rank 0 are written.
        record: Other values to save as JSON; those of rank 0 are written.
        callbacks: State of callbacks, tensors and plain values; that of rank 0 is written.
        dist_context: Process group of the run, if it has several processes: all must call this.
        create_parents: Whether to create missing parent folders.

    Raises:
        DiskError: If it cannot be written; earlier states are kept.
        PeerFailedError: If another rank cannot write it.
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
    """Write one file per rank if tensors are sharded, else consolidated files."""
    if dist_context.world_size > 1 and any(map(is_sharded, tensors.values())):
        # Imported only here: the module loads slowly, and few runs need it.
        from growlm.checkpoint.distributed_checkpoint import write_rank_shards

        return write_rank_shards(folder, stem, tensors, dist_context)
    return write_consolidated(folder, stem, tensors, dist_context)


def state_folder(resume_dir: Path, global_step: int, ended_phase: int | None = None) -> Path:
    """Return the folder of a state; names sort in the order of the states.

    Args:
        resume_dir: Folder `resume/` of the run.
        global_step: Optimizer steps of the run so far.
        ended_phase: Index of the phase if it ended at a step that another state may have: the one before it, where
            it has zero steps, or one of its own, where it ended early.
    """
    suffix = "" if ended_phase is None else f"-{ended_phase:03d}"
    return resume_dir / f"{global_step:09d}{suffix}"


def list_state_folders(resume_dir: Path) -> list[Path]:
    """List the folders of all states, oldest first."""
    return sorted(path for path in resume_dir.glob("[0-9]*") if path.is_dir())


@dataclass(frozen=True)
class ResumeState:
    """A resume state on disk whose files match their manifest.

    Without a mesh, tensors are read in full by the calling process alone. With a mesh, all ranks must call, and
    each gets the rows that FSDP2 assigns to it, on its device, however many ranks wrote the files.
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
        """Open a state after checking every file against the manifest.

        Args:
            folder: Folder of the state.
            dist_context: Process group of the run, if it has several processes.
            is_checked: Whether another rank has checked the files already.

        Raises:
            UserError: For the first file that is missing or damaged.
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
        """Return a new model with the state's weights.

        Args:
            mesh: Device mesh to shard the model over; None for the full model.

        Raises:
            UserError: If weights and config do not match.
        """
        config, _ = read_config(self.folder, RESUME_SETTING)
        if mesh is not None:
            # Imported only here: the module loads slowly, and few runs need it.
            from growlm.checkpoint.distributed_checkpoint import read_sharded_model

            return read_sharded_model(config, self.weights, mesh, self.dist_context)
        return read_model(config, self.weights, in_memory=True)

    def read_optimizer_states(self, mesh: DeviceMesh | None = None) -> dict[str, ParameterState]:
        """Load the optimizer state by parameter name into memory.

        Args:
            mesh: Device mesh to shard the states over, as the model is; None for full states.

        Raises:
            UserError: If a state matches no parameter of the model, or has the wrong shape.
        """
        config, _ = read_config(self.folder, RESUME_SETTING)
        read_state_infos(self.optimizer, get_state_dict_shapes(config))
        if mesh is not None:
            from growlm.checkpoint.distributed_checkpoint import read_sharded_tensors

            return unflatten_states(read_sharded_tensors(self.optimizer, mesh, self.dist_context))
        return unflatten_states({n: self.optimizer.read(n).clone() for n in self.optimizer.names})

    def load_tensors(self) -> dict[str, Tensor]:
        """Load the other tensors into memory."""
        return {name: self.progress.read(name).clone() for name in self.progress.names}

    def load_callbacks(self) -> dict[str, Any]:
        """Load the state of callbacks by name.

        Raises:
            UserError: If the file holds anything but tensors and plain values; no code in it is run.
        """
        path = self.folder / CALLBACKS_FILE
        if not lexists(path):
            return {}
        target = resolve_regular_file(path, RESUME_SETTING, self.folder)
        reason = "must hold only tensors and plain values; not loaded"
        if not _is_uncompressed(target):
            raise UserError(RESUME_SETTING, path, reason)
        try:
            with warnings.catch_warnings(action="ignore"):  # the error below says the same
                loaded = torch.load(target, weights_only=True)
        except (OSError, MemoryError) as error:
            problem = f"cannot be read: {summarize_error(error)}"
            raise UserError(RESUME_SETTING, path, problem) from error
        except Exception as error:  # torch raises many types for a file that it did not write
            raise UserError(RESUME_SETTING, path, reason) from error
        if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
            reason = "must be a mapping from callback names to their state"
            raise UserError(RESUME_SETTING, path, reason)
        return loaded


def _is_uncompressed(path: Path) -> bool:
    """Return whether a file is an uncompressed zip archive, as torch writes it, and so no zip bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except OSError as error:
        if error.filename is None:  # a damaged archive that points before its beginning
            return False
        reason = f"cannot be read: {summarize_error(error)}"
        raise UserError(RESUME_SETTING, path, reason) from error
    except (ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
