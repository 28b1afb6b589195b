"""Restore a phase from a resume state, and write resume states during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
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
from growlm.growth.step_scaling import StepScaling
from growlm.model.transformer import TransformerLM
from growlm.optim.optimizer_states import get_optimizer_states
from growlm.runtime.errors import UserError
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.training.callbacks.callback_states import (
    collect_callback_state,
    restore_callback_state,
)
from growlm.training.callbacks.growth_callback import GrowthCallback
from growlm.training.callbacks.lightning_callbacks import find_expired_timer
from growlm.training.callbacks.loop_progress import set_loop_progress
from growlm.training.callbacks.progress_callback import ProgressCallback
from growlm.training.phase_module import PhaseStage
from growlm.training.resume.rng_state import capture_rng_states, restore_rng_states
from growlm.training.resume.state_schema import translate_restore_errors

GIVEN_PREFIX = "given "
"""First part of the names of callbacks that were given to `run_plan`; their numbers follow."""

WriteState = Callable[
    [TransformerLM, dict[str, ParameterState], dict[str, Any], dict[str, Tensor], dict[str, Any]],
    None,
]
"""Function that writes a state: model, optimizer states, record, other tensors, callback states."""


class RestoreStateCallback(Callback):
    """Callback that restores the model, optimizer state and all counters, for a `GrowthCallback` without growth.

    Args:
        state: Resume state of a step within this phase.
        scaling: Step scaling with which the phase began.
        growth: Callback of the phase, which gives the state to the optimizer.
        progress: Progress callback of the same phase.
        callbacks: User callbacks, by name.
    """

    def __init__(
        self,
        state: ResumeState,
        scaling: StepScaling,
        growth: GrowthCallback,
        progress: ProgressCallback,
        callbacks: dict[str, Callback],
    ) -> None:
        self.state, self.scaling, self.growth = state, scaling, growth
        self.progress, self.callbacks = progress, callbacks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the model and optimizer state, before Lightning wraps the model."""
        assert isinstance(pl_module, PhaseStage)
        record = self.state.record
        pl_module.model = self.state.load_model(pl_module.mesh)
        with translate_restore_errors(self.state.folder / STATE_FILE):
            self.scaling.load_state_dict(record["scaling"])
        pl_module.first_step, pl_module.step_scaling = record["step"], self.scaling
        states = self.state.read_optimizer_states(pl_module.mesh)
        self.growth.begin_with(states, self.scaling)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the progress of Lightning's loops and the state of the user's callbacks, after their `setup`."""
        accumulate = trainer.accumulate_grad_batches
        set_loop_progress(trainer, self.state.record["step"], accumulate)
        for name, callback_state in self.state.load_callbacks().items():
            if name not in self.callbacks:
                reason = explain_missing_callback(name)
                raise UserError(RESUME_SETTING, self.state.folder / CALLBACKS_FILE, reason)
            restore_callback_state(self.callbacks[name], callback_state, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore progress and random states: before `ProgressCallback` runs, after all other random draws."""
        assert isinstance(pl_module, PhaseStage)
        with translate_restore_errors(self.state.folder / f"{PROGRESS_STEM}.safetensors"):
            tensors = self.state.load_tensors()
            self.progress.restore_state(pl_module, self.state.record["progress"], tensors)
            restore_rng_states(self.state.record["random"], tensors)


def explain_missing_callback(name: str) -> str:
    """Return why a run cannot be resumed without a callback whose state it holds, and what to do."""
    if name.startswith(GIVEN_PREFIX):
        return (
            "the run had callbacks that were given to run_plan in Python; resume it there, with the same ones: "
            "run_plan(config, callbacks=[...])"
        )
    return f"holds the state of callback {name!r}, which this run does not have"


class SaveStateCallback(Checkpoint):
    """Callback that writes resume states and stops the run on request; must be the last one of a phase.

    Lightning calls `Checkpoint`s after all other callbacks, in their order.

    Args:
        phase: Phase that is trained.
        settings: Intervals between states.
        stop_requests: Signals and time limit that may stop the run.
        progress: Progress callback, which counts the steps.
        callbacks: User callbacks, by name.
        write_state: Function that writes a state.
        dist_context: Process group of the run; all ranks write and stop together.
        validate_every: Steps between validations; 0 for none but at the end. After a step with one, the state is
            written when it is over, so that it includes callback state updated by the validation.
        writes_end: Whether to write a state after the phase's last step, from which the phase can be extended.
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
        validate_every: int,
        writes_end: bool = False,
    ) -> None:
        self.writes_end = writes_end
        self.phase, self.settings, self.stop_requests = phase, settings, stop_requests
        self.progress, self.callbacks, self.write_state = progress, callbacks, write_state
        self.dist_context, self.validate_every = dist_context, validate_every
        self._last_write_time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start deferring stop requests to the end of a step."""
        self.stop_requests.install_handlers()
        self.dist_context.barrier()  # a signal then reaches all ranks before deferral starts, or all after
        self.stop_requests.is_deferring = True
        self._last_write_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a state or stop after a complete step, unless a validation follows.

        Raises:
            Interrupted: If the run was asked to stop.
        """
        step = self.progress.step
        is_complete = (batch_idx + 1) % self.phase.settings.accumulate == 0
        if is_complete and not (self.validate_every and step % self.validate_every == 0):
            self._write_or_stop(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a state or stop after a validation.

        Raises:
            Interrupted: If the run was asked to stop.
        """
        if trainer.sanity_checking:
            return
        self._write_or_stop(trainer, pl_module)
        if (
            self.writes_end and trainer.should_stop
        ):  # before averaged weights replace the trained ones
            assert isinstance(pl_module, PhaseStage)
            self._write(trainer, pl_module, {"finished": False, "ended_at": self.phase.num_steps})

    def _write_or_stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a state if it is due, or stop; the state of the last step is written at the end of the phase."""
        step = self.progress.step
        timer = find_expired_timer(trainer)
        if timer is not None and self.stop_requests.exit_code is None:
            self.stop_requests.exit_code, self.stop_requests.reason = 0, type(timer).__name__
        code, is_due, is_timer = self._agree_across_ranks(
            self.phase.first_step + step, timer is not None
        )
        if trainer.should_stop and (not is_timer or step == self.phase.num_steps):
            return
        if code is not None or is_due:
            assert isinstance(pl_module, PhaseStage)
            self._write(trainer, pl_module)
            self._last_write_time = time.monotonic()
        if code is not None:
            where = f"after step {step} of {self.phase.num_steps} of {self.phase.name}"
            reason = "Timer" if is_timer and code == 0 else self.stop_requests.reason
            raise Interrupted(code, where, reason)

    def _agree_across_ranks(
        self, global_step: int, is_timer: bool
    ) -> tuple[int | None, bool, bool]:
        """Return the exit code of a stop request, and whether a state is due and a timer is over, on any rank."""
        code = self.stop_requests.requested_exit_code
        local = [-1 if code is None else code, self._is_write_due(global_step), is_timer]
        exit_code, is_due, is_timer_over = self.dist_context.all_reduce_max(local)
        return (
            None if exit_code < 0 else int(exit_code),
            bool(is_due),
            bool(is_timer_over),
        )

    def _is_write_due(self, global_step: int) -> bool:
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        by_steps = bool(every) and global_step % every == 0
        return by_steps or (
            bool(minutes) and time.monotonic() - self._last_write_time >= 60 * minutes
        )

    def _write(
        self, trainer: Trainer, stage: PhaseStage, more: Mapping[str, Any] | None = None
    ) -> None:
        progress, tensors = self.progress.get_state()
        random, random_tensors = capture_rng_states()
        record = {
            "phase": self.phase.name,
            "step": self.progress.step,
            "progress": progress,
            "scaling": stage.step_scaling.state_dict(),
            "random": random,
            **(more or {}),
        }
        callback_states = {
            name: collect_callback_state(callback, trainer, stage)
            for name, callback in self.callbacks.items()
        }
        with torch.no_grad():
            self.write_state(
                stage.model,
                get_optimizer_states(stage.model, trainer.optimizers),
                record,
                tensors | random_tensors,
                {name: state for name, state in callback_states.items() if state},
            )
