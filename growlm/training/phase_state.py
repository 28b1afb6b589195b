"""Define `PhaseState`: the model and optimizer state that one phase passes to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from growlm.checkpoint.checkpoint_folder import (
    flatten_states,
    load_model,
    read_optimizer_states,
    save_model,
    unflatten_states,
)
from growlm.checkpoint.safetensors_io import TensorFiles
from growlm.checkpoint.scale_factor_tensors import PREFIX, flatten_factors, unflatten_factors
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import ParameterState
from growlm.growth.transforms.scale_factors import ScaleFactors
from growlm.runtime.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TRAINING_STEM = "training"
"""First part of the name of the file that holds scale factors and the state of other parameters."""


@dataclass
class PhaseState:
    """A trained model and its optimizers' state; the next phase takes both over and empties this object."""

    model: nn.Module | None
    """The trained model, sharded or not; None once the next phase has taken it."""
    optimizer_states: dict[str, ParameterState] = field(default_factory=dict)
    """State of the optimizers as plain moments, by parameter name of the model."""
    phase_name: str = "phase 0"
    index: int = 0
    """Number of phases before this one; the growth after it is seeded with the next number."""
    scale_factors: Mapping[str, ScaleFactors] = field(default_factory=dict)
    """Scale factors by parameter name, after a phase with `optimizer_state="exact"`; the next such phase continues
    from them."""
    optimizer_names: dict[str, str] = field(default_factory=dict)
    """Class of the optimizer that has stepped each parameter."""
    other_states: dict[str, ParameterState] = field(default_factory=dict)
    """State of the optimizers for parameters of the LightningModule that are not the model's."""
    other_optimizer_names: dict[str, str] = field(default_factory=dict)
    """Class of the optimizer that has stepped each of these."""

    @staticmethod
    def from_trainer(trainer: Trainer) -> PhaseState:
        """Return the state after `trainer.fit`; the trainer's optimizers must not step again.

        Raises:
            UserError: If the trainer has no `GrowthCallback`, or has not trained.
        """
        # Imported here because `GrowthCallback` takes a state.
        from growlm.training.callbacks.growth_callback import GrowthCallback

        found = [each for each in trainer.callbacks if isinstance(each, GrowthCallback)]  # type: ignore[attr-defined]
        if not found:
            reason = "the trainer has no GrowthCallback; give it GrowthCallback([]) in a phase that does not grow"
            raise UserError("trainer", "callbacks", reason)
        return found[0].collect_state(trainer)

    def save(self, folder: str | Path, dist_context: DistributedContext | None = None) -> None:
        """Write the state to a new checkpoint folder, which every growlm command reads.

        Args:
            folder: Folder to create; must not exist.
            dist_context: Process group; None for torch's, if there is one. All processes must call this.

        Raises:
            UserError: If the state is empty, because a phase has taken it over.
            FileExistsError: If the folder exists.
            DiskError: If it cannot be written; nothing is left behind.
        """
        if self.model is None:
            raise UserError("previous", self.phase_name, EMPTY_REASON)
        record: dict[str, Any] = {
            "phase": self.phase_name,
            "phase_index": self.index,
            "optimizers": self.optimizer_names,
            "other_optimizers": self.other_optimizer_names,
        }
        others = {
            f"other.{name}": t for name, t in flatten_states(_as_tensors(self.other_states)).items()
        }
        save_model(
            self.model,
            Path(folder),
            record,
            _as_tensors(self.optimizer_states),
            dist_context=dist_context or DistributedContext.current(),
            more_tensors={TRAINING_STEM: flatten_factors(self.scale_factors) | others},
        )

    @staticmethod
    def load(folder: str | Path, trust: Sequence[str] = ()) -> PhaseState:
        """Read a state that `save` has written, or any growlm checkpoint, on every process.

        Args:
            folder: Checkpoint folder.
            trust: Packages whose classes may be built, if the model is of a class of its own.

        Raises:
            UserError: If the folder is not a growlm checkpoint, its model's class is not trusted, or its files are
                damaged.
        """
        folder = Path(folder)
        model, record = load_model(folder, trust=trust)
        tensors: dict[str, Tensor] = {}
        if TensorFiles.exist(folder, TRAINING_STEM):
            files = TensorFiles(folder, TRAINING_STEM)
            tensors = {name: files.read(name).clone() for name in files.names}
        others = {
            name.partition(".")[2]: tensor
            for name, tensor in tensors.items()
            if not name.startswith(f"{PREFIX}.")
        }
        factors = unflatten_factors(tensors)
        if factors:  # a scalar has no dimension, and so no factor that a file could hold
            factors |= {name: () for name, p in model.named_parameters() if not p.ndim}
        return PhaseState(
            model=model,
            optimizer_states=read_optimizer_states(folder),
            phase_name=record.get("phase", "phase 0"),
            index=record.get("phase_index", 0),
            scale_factors=factors,
            optimizer_names=record.get("optimizers", {}),
            other_optimizer_names=record.get("other_optimizers", {}),
            other_states=unflatten_states(others),
        )


EMPTY_REASON = "is empty: a phase has taken it over; keep a copy on disk with save()"


def _as_tensors(states: Mapping[str, ParameterState]) -> dict[str, ParameterState]:
    """Return states whose step counts are tensors, too, as files need them.

    Raises:
        UserError: If an entry is neither a tensor nor a number.
    """
    converted: dict[str, ParameterState] = {}
    for name, state in states.items():
        converted[name] = {}
        for entry, value in state.items():
            if not isinstance(value, Tensor | int | float):
                reason = f"of {name} is a {type(value).__name__}, which cannot be saved"
                raise UserError("optimizer state", entry, reason)
            converted[name][entry] = (
                value if isinstance(value, Tensor) else torch.tensor(float(value))
            )
    return converted
