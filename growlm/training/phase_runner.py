"""Train the phases of a run one after another, each grown from the previous one."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from growlm.checkpoint.resume_state import STATE_FILE, ResumeState, write_resume_state
from growlm.config.phase_plan import PlannedPhase
from growlm.data import PackedDataModule
from growlm.growth.optimizer_state import ParameterState
from growlm.model.transformer import TransformerLM
from growlm.optim import adamw_8bit
from growlm.planner.forecast import suggest_less_memory
from growlm.reporting.events import RunListener
from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary
from growlm.reporting.run_history import RunHistoryWriter
from growlm.runtime.errors import RunError
from growlm.runtime.hardware import get_peak_flops
from growlm.runtime.memory import (
    KeepFreedMemory,
    is_out_of_memory,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
    resident_memory_bytes,
)
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.training.callbacks.checkpoint_callback import (
    PhaseCheckpointCallback,
    SampleCallback,
    remove_stale_checkpoints,
)
from growlm.training.callbacks.growth_callback import GrowthCallback, derive_step_scaling
from growlm.training.callbacks.own_state import (
    build_state_callbacks,
    get_own_data_state,
    restore_own_data,
)
from growlm.training.callbacks.pretrained_callback import PretrainedCallback
from growlm.training.callbacks.progress_callback import ProgressCallback
from growlm.training.callbacks.resume_callback import RestoreStateCallback, SaveStateCallback
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import PhaseState
from growlm.training.resume.phase_reuse import PhaseReuse
from growlm.training.resume.state_schema import translate_restore_errors
from growlm.training.run_context import RunContext
from growlm.training.run_folder import RunFolder
from growlm.training.run_setup import build_extra_callbacks
from growlm.training.strategy import build_device_mesh, build_trainer_device_args, describe_devices
from growlm.training.trainer_arguments import build_trainer


class PhaseRunner:
    """Runner that trains the phases of a run and keeps the model and the run's summary between them.

    Args:
        context: Context of the run.
        folder: Run folder that receives all files.
        listener: Receiver of all events.
        history: Writer of the run's history, whose position is part of every resume state; None on ranks other
            than 0.
        callbacks: Additional Lightning callbacks, used in every phase.
        stop_requests: Signals and time limit that may stop the run.
        phase_reuse: Cache that receives the state after each phase.
    """

    def __init__(
        self,
        context: RunContext,
        folder: RunFolder,
        listener: RunListener,
        history: RunHistoryWriter | None,
        callbacks: Sequence[Callback],
        stop_requests: GracefulStop,
        phase_reuse: PhaseReuse,
    ) -> None:
        self.context, self.folder, self.listener = context, folder, listener
        self.history, self.dist_context = history, context.dist_context
        self._device_description = describe_devices(
            context.machine.accelerator, self.dist_context, context.config.trainer
        )
        self.callbacks, self.stop_requests, self.phase_reuse = callbacks, stop_requests, phase_reuse
        self.config, self.plan = context.config, context.plan
        self.mesh = build_device_mesh(
            self.dist_context, self.config.trainer, context.machine.accelerator
        )
        self.phase_state: PhaseState | None = None
        compiles = self.config.optimizer.name == adamw_8bit.OPTIMIZER_NAME
        self._compile_notices = [_CompileNotice(listener)] if compiles else []
        self.start_time = time.perf_counter()
        peak = self.dist_context.run_on_rank0(lambda: get_peak_flops(context.machine))
        self.peak_flops = None if peak is None else peak * self.dist_context.world_size
        self.summary = RunSummary(
            name=self.config.name,
            seed=self.config.seed,
            device=self._device_description,
            precision=context.machine.precision,
            reused=phase_reuse.reused_phases,
        )

    def run(self, state: ResumeState | None) -> RunSummary:
        """Train all phases, or those that remain after a resume state."""
        release_memory()
        self.summary.initial_memory_bytes = resident_memory_bytes()
        if state is not None:
            with translate_restore_errors(state.folder / STATE_FILE):
                self.context.data.train.load_state_dict(state.record.get("data"))
                restore_own_data(self.context, state.load_callbacks())
        first = 0 if state is None else self._resume_from(state)
        if state is None:
            self.dist_context.run_on_rank0(
                lambda: remove_stale_checkpoints(self._checkpoint_dir, self.plan.phases)
            )
        with _quiet_lightning():
            for phase in self.plan.phases[first:]:
                with _suggest_less_memory_on_oom(self.context, phase):
                    self._run_phase(phase, state if self.phase_state is None else None)
        self.summary.wall_time_s = time.perf_counter() - self.start_time
        self.listener.run_finished(self.summary)
        self.dist_context.run_on_rank0(self.folder.remove_states)
        return self.summary

    def _resume_from(self, state: ResumeState) -> int:
        """Restore the run from a state and return the index of the phase to continue with."""
        record, saved = state.record, state.record["run"]
        self.start_time -= saved["seconds"]
        self.summary.phases, self.summary.boundaries = (
            list(saved["phases"]),
            list(saved["boundaries"]),
        )
        phase = self.plan.get_phase(record["phase"])
        later = self.plan.phases[phase.index + 1 :]
        unfinished = phase if record["step"] < phase.num_steps else None
        self.dist_context.run_on_rank0(
            lambda: remove_stale_checkpoints(self._checkpoint_dir, later, unfinished)
        )
        if unfinished is not None:
            return phase.index
        scaling = derive_step_scaling(self.plan, phase.index, self.config.optimizer)
        self.phase_state = PhaseState(
            phase.name,
            state.load_model(self.mesh),
            state.read_optimizer_states(self.mesh),
            scaling.carried_factors,
        )
        return phase.index + 1

    def _run_phase(self, phase: PlannedPhase, state: ResumeState | None) -> None:
        """Train a phase from its beginning, or from a resume state within it."""
        saved = {"step": 0} if state is None else state.record
        phase_start = time.perf_counter() - saved.get("phase_seconds", 0.0)
        release_memory()
        reset_peak_memory()
        stage = PhaseStage(
            self.plan,
            phase,
            self.config.optimizer,
            self.config.schedule,
            self.config.seed,
            self.config.trainer,
            self.dist_context,
            self.mesh,
        )
        data = self._build_data_module(phase, saved["step"])
        progress = self._progress_callback(phase, data)
        sample = SampleCallback(self.config.callbacks, self.context.tokenizer, self.config.seed)
        user_callbacks = build_extra_callbacks(self.config)
        user_callbacks |= build_state_callbacks(self.context)
        user_callbacks |= {
            f"given {index}": callback for index, callback in enumerate(self.callbacks)
        }
        trainer = self._build_trainer(
            phase,
            phase.num_steps - saved["step"],
            [
                *([KeepFreedMemory()] if self.config.trainer.keep_freed_memory else []),
                *self._model_source_callbacks(phase, state, progress, user_callbacks),
                *([] if phase.num_steps else [_StopBeforeFirstStep()]),
                self._checkpoint_callback(phase),  # before `progress` starts its timer
                progress,
                *(self._compile_notices if phase.num_steps else []),
                sample,
                *user_callbacks.values(),
                self._state_callback(phase, progress, user_callbacks, phase_start),
            ],
        )
        trainer.fit(stage, train_dataloaders=data.train_dataloader())
        if progress.step != phase.num_steps:
            raise RuntimeError(
                f"phase {phase.name} ended after {progress.step} of {phase.num_steps} steps: a callback in "
                "callbacks.extra stopped it, which would make the following phases wrong"
            )
        factors = stage.scaling.carried_factors
        states = stage.finalize_optimizer_states(trainer.optimizers[0])
        self.phase_state = PhaseState(phase.name, stage.model, states, factors)
        self._finish_phase(phase, progress, sample.text, time.perf_counter() - phase_start)
        if phase is not self.plan.phases[-1]:
            record = {"phase": phase.name, "step": phase.num_steps}
            own_states = get_own_data_state(self.context)
            self._write_state(phase, phase_start, stage.model, states, record, {}, own_states)
            if self.history is not None:
                self.phase_reuse.store_phase(phase, self.history.path)
            self.stop_requests.is_deferring = False
            code = self.stop_requests.requested_exit_code
            (exit_code,) = self.dist_context.all_reduce_max([-1 if code is None else code])
            if exit_code >= 0:
                raise Interrupted(int(exit_code), f"after {phase.name}")

    def _model_source_callbacks(
        self,
        phase: PlannedPhase,
        state: ResumeState | None,
        progress: ProgressCallback,
        user_callbacks: dict[str, Callback],
    ) -> list[Callback]:
        """Return callbacks that set the phase's model: from a state, the previous phase or a pretrained folder."""
        if state is not None:
            scaling = derive_step_scaling(self.plan, phase.index, self.config.optimizer)
            return [RestoreStateCallback(state, scaling, progress, user_callbacks)]
        if self.phase_state is not None:
            model_from: list[Callback] = [self._growth_callback(phase, self.phase_state)]
        elif self.context.pretrained is not None:
            model_from = [PretrainedCallback(self.context.pretrained, phase)]
        else:
            model_from = []
        return [*model_from, _PhaseStartNotifier(self._describe_phase_start(phase), self.listener)]

    def _write_state(
        self,
        phase: PlannedPhase,
        phase_start: float,
        model: TransformerLM,
        states: dict[str, ParameterState],
        record: dict[str, Any],
        tensors: dict[str, Tensor],
        callback_states: dict[str, Any],
    ) -> None:
        global_step = phase.first_step + record["step"]
        folder = self.folder.state_folder(phase, record["step"])
        self.listener.task_progress("writing resume state", 0, None)
        start = time.perf_counter()
        if self.history is not None:
            record["data"] = self.context.data.train.state_dict(
                phase.first_sample + record["step"] * phase.samples_per_step
            )
            record["phase_seconds"] = time.perf_counter() - phase_start
            record["run"] = {
                "global_step": global_step,
                "seconds": time.perf_counter() - self.start_time,
                "phases": [asdict(summary) for summary in self.summary.phases],
                "boundaries": [asdict(boundary) for boundary in self.summary.boundaries],
                "history": self.history.position(),
            }
        write_resume_state(
            folder,
            global_step,
            model,
            states,
            tensors,
            record,
            callback_states,
            self.dist_context,
            create_parents=False,  # if the run folder was removed, the run must stop
        )
        self.summary.states_written += 1
        self.summary.states_s += time.perf_counter() - start

    @property
    def _checkpoint_dir(self) -> Path:
        return self.folder.path / "checkpoints"

    def _finish_phase(
        self, phase: PlannedPhase, progress: ProgressCallback, sample: str, seconds: float
    ) -> None:
        parameters = phase.parameter_report
        tokens = phase.num_steps * phase.tokens_per_step
        summary = PhaseSummary(
            name=phase.name,
            total_parameters=parameters.total,
            active_parameters=parameters.active,
            inactive_parameters=parameters.inactive,
            idle_experts=parameters.idle_experts,
            efficiency=parameters.efficiency,
            steps=phase.num_steps,
            tokens=tokens,
            flops=phase.num_steps * phase.flops_per_step,
            first_loss=progress.first_loss,
            final_loss=progress.final_loss,
            initial_val_loss=progress.initial_val_loss,
            val_loss=progress.val_loss,
            val_bits_per_byte=None
            if (bits := self.context.nats_to_bits_per_byte) is None
            else progress.val_loss * bits,
            wall_time_s=seconds,
            tokens_per_second=tokens / progress.training_seconds if tokens else None,
            peak_memory_bytes=int(self.dist_context.all_reduce_max([peak_memory_bytes()])[0]),
            sample=sample,
            router_check=progress.check_routers(),
        )
        self.summary.phases.append(summary)
        self.listener.phase_finished(summary)

    def _build_trainer(self, phase: PlannedPhase, steps: int, callbacks: list[Callback]) -> Trainer:
        return build_trainer(
            self.config.trainer,
            accelerator=self.context.machine.accelerator,
            **build_trainer_device_args(
                self.dist_context, self.config.trainer, self.context.machine.precision
            ),
            max_steps=max(1, steps),  # Lightning skips the hooks at 0; see `_StopBeforeFirstStep`
            max_epochs=1,
            accumulate_grad_batches=phase.settings.accumulate,
            callbacks=callbacks,
            default_root_dir=self.folder.path,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,  # Lightning's would hold a second copy of all tensors in memory
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _build_data_module(self, phase: PlannedPhase, steps_done: int) -> PackedDataModule:
        """Build the data module for the steps that remain after `steps_done`."""
        return PackedDataModule(
            self.context.data.train,
            self.context.data.validation,
            first_sample=phase.first_sample + steps_done * phase.samples_per_step,
            num_batches=max(1, phase.num_steps - steps_done) * phase.settings.accumulate,
            batch_size=phase.settings.batch_size,
            validation_sequences=self.config.trainer.validation_sequences,
            rank=self.dist_context.rank,
            world_size=self.dist_context.world_size,
        )

    def _describe_phase_start(self, phase: PlannedPhase) -> PhaseStart:
        return PhaseStart(
            name=phase.name,
            index=phase.index,
            num_phases=len(self.plan.phases),
            steps=phase.num_steps,
            lr=phase.settings.lr,
            device=self._device_description,
            precision=self.context.machine.precision,
            parameters=phase.parameter_report,
        )

    def _growth_callback(self, phase: PlannedPhase, phase_state: PhaseState) -> GrowthCallback:
        return GrowthCallback(
            phase_state,
            phase,
            self.context.make_probe(),
            self.config.verification,
            self.config.optimizer,
            self.config.seed,
            self._report_boundary,
            self.dist_context,
        )

    def _progress_callback(self, phase: PlannedPhase, data: PackedDataModule) -> ProgressCallback:
        return ProgressCallback(
            phase,
            self.config.callbacks.log_every,
            self.listener,
            sum(
                before.num_steps * before.tokens_per_step for before in self._previous_phases(phase)
            ),
            sum(
                before.num_steps * before.flops_per_step for before in self._previous_phases(phase)
            ),
            self.start_time,
            self.peak_flops,
            data.val_dataloader(),
            self.context.nats_to_bits_per_byte,
            self.config.trainer.validate_every,
        )

    def _previous_phases(self, phase: PlannedPhase) -> list[PlannedPhase]:
        return self.plan.phases[: phase.index]

    def _state_callback(
        self,
        phase: PlannedPhase,
        progress: ProgressCallback,
        user_callbacks: dict[str, Callback],
        phase_start: float,
    ) -> SaveStateCallback:
        write = partial(self._write_state, phase, phase_start)
        return SaveStateCallback(
            phase,
            self.config.checkpoint,
            self.stop_requests,
            progress,
            user_callbacks,
            write,
            self.dist_context,
        )

    def _checkpoint_callback(self, phase: PlannedPhase) -> PhaseCheckpointCallback:
        return PhaseCheckpointCallback(
            phase,
            self._checkpoint_dir,
            {"tokenizer": self.context.recorded_tokenizer, **self.context.source_metadata},
            self.context.tokenizer_files,
            self.config.seed,
            self.config.checkpoint.save_optimizer,
            lambda name: self.listener.task_progress(f"writing {name}", 0, None),
            self.dist_context,
        )

    def _report_boundary(self, record: BoundaryRecord) -> None:
        self.summary.boundaries.append(record)
        self.listener.boundary_finished(record)


@contextmanager
def _suggest_less_memory_on_oom(context: RunContext, phase: PlannedPhase) -> Iterator[None]:
    """Turn an out-of-memory error into one that suggests settings needing less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        advice = suggest_less_memory(
            context.config, context.tokenizer.vocab_size, context.forecast, phase
        )
        raise RunError(f"phase {phase.name}: out of memory ({reason}). {advice}") from error


class _PhaseStartNotifier(Callback):
    """Callback that reports the start of a phase, after its boundary and before its first step."""

    def __init__(self, start: PhaseStart, listener: RunListener) -> None:
        self.start, self.listener = start, listener

    def on_fit_start(self, trainer: object, pl_module: object) -> None:
        self.listener.phase_started(self.start)


class _CompileNotice(Callback):
    """Callback that reports once that the optimizer step is compiling, which may take half a minute."""

    def __init__(self, listener: RunListener) -> None:
        self.listener, self.has_reported = listener, False

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        if not self.has_reported:
            self.listener.task_progress("compiling the optimizer's step", 0, None)
        self.has_reported = True


class _StopBeforeFirstStep(Callback):
    """Callback that stops a phase without steps before its first step, so that all other hooks still run."""

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        trainer.should_stop = True


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801 - a context manager
    """Context manager that silences Lightning's hints about settings that growlm chooses on purpose."""

    def __enter__(self) -> None:
        super().__enter__()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        for hint in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*treespec, LeafSpec.*",  # Lightning itself calls this deprecated torch function
        ):
            warnings.filterwarnings("ignore", hint)
