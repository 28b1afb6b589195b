"""The state of a run on disk: a model's folder, and beside the model all that training goes on from.

`resume/<global step>/` (`state_folder`) holds what `artefact.py` writes, and

    state.json              where the run stands, plain JSON
    progress.safetensors    sums and random states
    callbacks.pt            what the user's own callbacks keep; tensors and plain values only

Written whole or not at all; the newest two are kept.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growlm.checkpoint.artefact import (
    CONFIG_NAME,
    OPTIMIZER,
    WEIGHTS,
    flat_states,
    new_folder,
    read_config,
    read_model,
    read_states,
    write_config,
    write_named,
)
from growlm.checkpoint.sealed import check_manifest, read_json
from growlm.checkpoint.tensor_files import TensorFiles
from growlm.errors import UserError
from growlm.growth.optimizer_state import State
from growlm.model.transformer import TransformerLM

KEPT = 2
RECORD = "state.json"
PROGRESS = "progress"
CALLBACKS = "callbacks.pt"
KEY = "resume"


def write_state(
    folder: Path,
    global_step: int,
    model: TransformerLM,
    states: Mapping[str, State],
    tensors: Mapping[str, Tensor],
    record: dict[str, Any],
    callbacks: Mapping[str, Any] | None = None,
) -> None:
    """Write a state and let go of all but the newest two.

    Args:
        folder: Of the state, from `state_folder`.
        global_step: Steps of the run.
        model: Its weights, straight from memory.
        states: The optimizer's, by parameter name.
        tensors: What else is a tensor.
        record: What else is JSON.
        callbacks: What callbacks keep: tensors and plain values.

    Raises:
        DiskError: If it cannot be written; the states before it stay.
    """
    with new_folder(folder) as (partial, digests):
        digests |= write_named(partial, WEIGHTS, dict(model.state_dict()))
        digests |= write_named(partial, OPTIMIZER, flat_states(states))
        digests |= write_named(partial, PROGRESS, tensors)
        (partial / RECORD).write_text(json.dumps(record) + "\n")
        if callbacks:
            torch.save(dict(callbacks), partial / CALLBACKS)
        write_config(partial, model.config, {"global_step": global_step})
    for old in state_folders(folder.parent)[:-KEPT]:
        shutil.rmtree(old)


def state_folder(resume_dir: Path, global_step: int, untrained_phase: int | None = None) -> Path:
    """Where a state goes; names sort as the states follow each other.

    Args:
        resume_dir: Of the run.
        global_step: Steps of the run.
        untrained_phase: Index of the phase, if it has no steps and so ends where the one before it ended.
    """
    suffix = "" if untrained_phase is None else f"-{untrained_phase:03d}"
    return resume_dir / f"{global_step:09d}{suffix}"


def state_folders(resume_dir: Path) -> list[Path]:
    """All states, oldest first."""
    return sorted(path for path in resume_dir.glob("[0-9]*") if path.is_dir())


@dataclass(frozen=True)
class RunState:
    """A state whose every file is what was written."""

    folder: Path
    record: dict[str, Any]
    weights: TensorFiles
    optimizer: TensorFiles
    progress: TensorFiles

    @staticmethod
    def open(folder: Path) -> RunState:
        """Compare every file with the manifest.

        Raises:
            UserError: Naming the first file that is missing or damaged.
        """
        weights, optimizer, progress = (
            TensorFiles(folder, stem, KEY) for stem in (WEIGHTS, OPTIMIZER, PROGRESS)
        )
        has_callbacks = (folder / CALLBACKS).exists()
        check_manifest(folder, KEY, [CONFIG_NAME, RECORD, *([CALLBACKS] if has_callbacks else [])])
        try:
            record = dict(read_json(folder / RECORD))
        except (ValueError, TypeError) as error:
            raise UserError(KEY, folder / RECORD, f"is no record of a run: {error}") from error
        return RunState(folder, record, weights, optimizer, progress)

    def model(self) -> TransformerLM:
        """The model, in memory of its own."""
        config, _ = read_config(self.folder, KEY)
        return read_model(config, self.weights, in_memory=True)

    def optimizer_states(self) -> dict[str, State]:
        """The optimizer's state by parameter name, in memory of its own."""
        states = read_states(self.optimizer)
        return {n: {e: t.clone() for e, t in state.items()} for n, state in states.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The other tensors, in memory of their own."""
        return {name: self.progress.read(name).clone() for name in self.progress.names}

    def callbacks(self) -> dict[str, Any]:
        """What callbacks kept.

        Raises:
            UserError: If the file holds anything but tensors and plain values; nothing of it is run.
        """
        path = self.folder / CALLBACKS
        if not path.exists():
            return {}
        try:
            with warnings.catch_warnings(action="ignore"):  # what it would say is said below
                return dict(torch.load(path, weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
            allowed = "holds more than tensors and plain values, and is not read"
            raise UserError(KEY, path, allowed) from error
