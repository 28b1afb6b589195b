"""Going on from a state, and writing states on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from growlm.checkpoint.resume_state import (
    CALLBACKS_FILE,
    PROGRESS_STEM,
    RESUME_SETTING,
    STATE_FILE,
    ResumeState,
)
from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import CheckpointConfig
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import ParameterState
from growlm.model.transformer import TransformerLM
from growlm.optim.optimizer_factory import get_optimizer_states
from growlm.optim.step_scaling import StepScaling
from growlm.runtime.errors import UserError
from growlm.runtime.rng_state import capture_rng_states, restore_rng_states
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.training.callbacks.progress_callback import ProgressCallback
from growlm.training.phase_module import PhaseStage
from growlm.training.resume.state_schema import translate_restore_errors

WriteState = Callable[
    [TransformerLM, dict[str, ParameterState], dict[str, Any], dict[str, Tensor], dict[str, Any]],
    None,
]
"""Takes the model, the optimizer's state, the record, other tensors, and what callbacks keep."""


class RestoreStateCallback(Callback):
    """Puts the model, the optimizer's state and all counters back; in place of `GrowthCallback`.

    Args:
        state: Of a step in the middle of this phase.
        scaling: As the phase began with.
        progress: Of the same phase.
        callbacks: The user's, by name.
    """

    def __init__(
        self,
        state: ResumeState,
        scaling: StepScaling,
        progress: ProgressCallback,
        callbacks: dict[str, Callback],
    ) -> None:
        self.state, self.scaling = state, scaling
        self.progress, self.callbacks = progress, callbacks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is built from the model."""
        assert isinstance(pl_module, PhaseStage)
        record = self.state.record
        pl_module.model = self.state.load_model(pl_module.mesh)
        with translate_restore_errors(self.state.folder / STATE_FILE):
            self.scaling.load_state_dict(record["scaling"])
        states = self.state.read_optimizer_states(pl_module.mesh)
        pl_module.resume_from(record["step"], self.scaling, states)
        for name, kept in self.state.load_callbacks().items():
            if name not in self.callbacks:
                allowed = f"has the state of the callback {name!r}, which the run does not have"
                raise UserError(RESUME_SETTING, self.state.folder / CALLBACKS_FILE, allowed)
            self.callbacks[name].load_state_dict(kept)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the progress callback's own, and after everything that might draw."""
        assert isinstance(pl_module, PhaseStage)
        with translate_restore_errors(self.state.folder / f"{PROGRESS_STEM}.safetensors"):
            tensors = self.state.load_tensors()
            self.progress.restore_state(pl_module, self.state.record["progress"], tensors)
            restore_rng_states(self.state.record["random"], tensors)


class SaveStateCallback(Callback):
    """Writes states when it is time, and stops the run when it is asked to. The last of a phase's callbacks.

    Args:
        phase: The phase.
        settings: When it is time.
        requests: Who asks.
        progress: Counts the steps.
        callbacks: The user's, by name.
        write: Called with what is to be written.
        world: The processes of the run, which write and stop together.
    """

    def __init__(
        self,
        phase: PlannedPhase,
        settings: CheckpointConfig,
        stop_requests: GracefulStop,
        progress: ProgressCallback,
        callbacks: dict[str, Callback],
        write_state: WriteState,
        dist_context: DistributedContext,
    ) -> None:
        self.phase, self.settings, self.stop_requests = phase, settings, stop_requests
        self.progress, self.callbacks, self.write_state = progress, callbacks, write_state
        self.dist_context = dist_context
        self._last_write_time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, steps are finished before the run stops."""
        self.stop_requests.install_handlers()
        self.dist_context.barrier()  # a signal to all finds all before this line, or all after the next
        self.stop_requests.is_deferring = True
        self._last_write_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a whole step but the last, whose state is written with the phase's end.

        Raises:
            Interrupted: If the run was asked to stop.
        """
        step = self.progress.step
        if (batch_idx + 1) % self.phase.settings.accumulate or step == self.phase.num_steps:
            return
        code, is_time = self._agree_across_ranks(self.phase.first_step + step)
        if code is not None or is_time:
            assert isinstance(pl_module, PhaseStage)
            self._write(trainer, pl_module)
            self._last_write_time = time.monotonic()
        if code is not None:
            raise Interrupted(
                code, f"after step {step} of {self.phase.num_steps} of {self.phase.name}"
            )

    def _agree_across_ranks(self, global_step: int) -> tuple[int | None, bool]:
        """The exit code to stop with, and whether it is time for a state: if any process thinks so."""
        code = self.stop_requests.requested_exit_code
        own = [-1 if code is None else code, self._is_write_due(global_step)]
        asked, is_time = self.dist_context.all_reduce_max(own)
        return (None if asked < 0 else int(asked)), bool(is_time)

    def _is_write_due(self, global_step: int) -> bool:
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        by_steps = bool(every) and global_step % every == 0
        return by_steps or (
            bool(minutes) and time.monotonic() - self._last_write_time >= 60 * minutes
        )

    def _write(self, trainer: Trainer, stage: PhaseStage) -> None:
        progress, tensors = self.progress.get_state()
        random, random_tensors = capture_rng_states()
        record = {
            "phase": self.phase.name,
            "step": self.progress.step,
            "progress": progress,
            "scaling": stage.scaling.state_dict(),
            "random": random,
        }
        kept = {name: callback.state_dict() for name, callback in self.callbacks.items()}
        with torch.no_grad():
            self.write_state(
                stage.model,
                get_optimizer_states(stage.model, trainer.optimizers[0]),
                record,
                tensors | random_tensors,
                {name: state for name, state in kept.items() if state},
            )
