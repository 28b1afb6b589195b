"""Train the phases of a run one after another, each grown from the previous one."""

from __future__ import annotations

import copy
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
from growlm.reporting.loggers.metric_logger import MetricLogger
from growlm.reporting.loggers.trainer_logger import TrainerLogger
from growlm.reporting.records import (
    BoundaryRecord,
    PhaseStart,
    PhaseSummary,
    RunSummary,
    SetMeasures,
)
from growlm.reporting.run_history import RunHistoryWriter
from growlm.runtime.errors import RunError, UserError
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
from growlm.training.callbacks.growth_callback import GrowthCallback
from growlm.training.callbacks.lightning_callbacks import (
    carry_timers,
    explain_early_end,
    has_progress_bar,
    is_lightning_callback,
    reads_every_loss,
)
from growlm.training.callbacks.own_state import (
    build_state_callbacks,
    get_own_data_state,
    restore_own_data,
)
from growlm.training.callbacks.pretrained_callback import PretrainedCallback
from growlm.training.callbacks.progress_callback import ProgressCallback
from growlm.training.callbacks.resume_callback import (
    GIVEN_PREFIX,
    RestoreStateCallback,
    SaveStateCallback,
    explain_missing_callback,
)
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import PhaseState
from growlm.training.resume.derived_scaling import derive_step_scaling, get_betas
from growlm.training.resume.phase_reuse import PhaseReuse
from growlm.training.resume.state_schema import is_phase_finished, translate_restore_errors
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
        metrics: Loggers of the run; none on ranks other than 0, and for `logger=none`.
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
        metrics: Sequence[MetricLogger] = (),
    ) -> None:
        self.context, self.folder, self.listener = context, folder, listener
        self.history, self.dist_context = history, context.dist_context
        self._device_description = describe_devices(
            context.machine.accelerator, self.dist_context, context.config.trainer
        )
        self.callbacks, self.stop_requests, self.phase_reuse = callbacks, stop_requests, phase_reuse
        self.metrics = metrics
        self._user_callbacks: dict[str, Callback] = {}
        self._carried_states: dict[str, Any] = {}
        """State of the callbacks that live through all phases, from a state between two phases."""
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
        keeps_final = self.config.checkpoint.keep_final_state
        self.dist_context.run_on_rank0(lambda: self.folder.remove_states(int(keeps_final)))
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
        unfinished = None if is_phase_finished(record, phase) else phase
        stale = None if "ended_at" in record else unfinished
        self.dist_context.run_on_rank0(
            lambda: remove_stale_checkpoints(self._checkpoint_dir, later, stale)
        )
        if unfinished is not None:
            return phase.index
        self._carried_states = {
            name: value
            for name, value in state.load_callbacks().items()
            if name.startswith(GIVEN_PREFIX)
        }
        scaling = derive_step_scaling(self.plan, phase.index, self.config.optimizer)
        self.phase_state = PhaseState(
            model=state.load_model(self.mesh),
            optimizer_states=state.read_optimizer_states(self.mesh),
            phase_name=phase.name,
            index=phase.index,
            scale_factors=scaling.carried_factors,
        )
        return phase.index + 1

    def _run_phase(self, phase: PlannedPhase, state: ResumeState | None) -> None:
        """Train a phase from its beginning, or from a resume state within it."""
        saved = {"step": 0} if state is None else state.record
        phase_start = time.perf_counter() - saved.get("phase_seconds", 0.0)
        is_over = not phase.num_steps or saved.get("ended_at") == phase.num_steps
        release_memory()
        reset_peak_memory()
        user_callbacks = self._build_user_callbacks()
        if self.phase_state is not None:
            self.listener.growth_started(self.phase_state.phase_name, phase.name)
        stage = PhaseStage(
            self.plan,
            phase,
            self.config.optimizer,
            self.config.schedule,
            self.config.seed,
            self.config.trainer,
            self.dist_context,
            self.mesh,
            log_to_logger=False,
            evaluation_sets=list(self.context.data.evaluation_sets),
            log_every=1 if reads_every_loss(user_callbacks) else self.config.callbacks.log_every,
            document_positions=self.context.document_positions,
        )
        data = self._build_data_module(phase, saved["step"])
        progress = self._progress_callback(phase, not has_progress_bar(user_callbacks))
        sample = SampleCallback(self.config.callbacks, self.context.tokenizer, self.config.seed)
        trainer = self._build_trainer(
            phase,
            saved["step"],
            [
                *([KeepFreedMemory()] if self.config.trainer.keep_freed_memory else []),
                *self._model_source_callbacks(phase, state, progress, user_callbacks),
                *user_callbacks.values(),  # before those that validate and save what they leave
                *([_StopBeforeFirstStep()] if is_over else []),
                self._checkpoint_callback(phase),  # before `progress` starts its timer
                progress,
                *(self._compile_notices if phase.num_steps else []),
                sample,
                self._state_callback(phase, progress, user_callbacks, phase_start),
            ],
            has_progress_bar(user_callbacks),
        )
        trainer.fit(stage, data.train_dataloader(), data.val_dataloader())
        ended_early = None
        if progress.step != phase.num_steps:
            ended_early = explain_early_end(user_callbacks)
            where = f"{phase.name} ended after {progress.step} of {phase.num_steps} steps"
            self.listener.message_logged(f"{where} ({ended_early})")
        self.phase_state = PhaseState.from_trainer(trainer)
        seconds = time.perf_counter() - phase_start
        self._finish_phase(phase, progress, sample.text, seconds, ended_early)
        if phase is not self.plan.phases[-1]:
            record = {"phase": phase.name, "step": progress.step, "finished": True}
            states = self.phase_state.optimizer_states
            lasting = {
                name: callback.state_dict()
                for name, callback in user_callbacks.items()
                if name.startswith(GIVEN_PREFIX) and not is_lightning_callback(callback)
            }
            own_states = get_own_data_state(self.context)
            own_states |= {name: value for name, value in lasting.items() if value}
            self._write_state(phase, phase_start, stage.model, states, record, {}, own_states)
            if self.history is not None:
                self.phase_reuse.store_phase(phase, self.history.path)
            self.stop_requests.is_deferring = False
            code = self.stop_requests.requested_exit_code
            (exit_code,) = self.dist_context.all_reduce_max([-1 if code is None else code])
            if exit_code >= 0:
                raise Interrupted(int(exit_code), f"after {phase.name}", self.stop_requests.reason)

    def _build_user_callbacks(self) -> dict[str, Callback]:
        """Return the user's callbacks for a phase: those of the config and those given to `run_plan`.

        Lightning's own begin anew in every phase; objects of other classes are used as they are.
        """
        callbacks = build_extra_callbacks(self.config) | build_state_callbacks(self.context)
        for index, callback in enumerate(self.callbacks):
            is_renewed = is_lightning_callback(callback)
            callbacks[f"{GIVEN_PREFIX}{index}"] = (
                copy.deepcopy(callback) if is_renewed else callback
            )
        for name, state in self._carried_states.items():
            if name not in callbacks:
                raise UserError("resume", self.folder.path, explain_missing_callback(name))
            callbacks[name].load_state_dict(state)
        self._carried_states = {}
        carry_timers(callbacks, self._user_callbacks)
        self._user_callbacks = callbacks
        return callbacks

    def _model_source_callbacks(
        self,
        phase: PlannedPhase,
        state: ResumeState | None,
        progress: ProgressCallback,
        user_callbacks: dict[str, Callback],
    ) -> list[Callback]:
        """Return callbacks that set the phase's model: from a state, the previous phase or a pretrained folder."""
        growth = self._growth_callback(phase)
        callbacks: list[Callback] = [growth]
        if state is not None:
            scaling = derive_step_scaling(self.plan, phase.index, self.config.optimizer)
            restore = RestoreStateCallback(state, scaling, growth, progress, user_callbacks)
            return [growth, restore]
        if self.phase_state is None and self.context.pretrained is not None:
            callbacks.append(PretrainedCallback(self.context.pretrained, phase, growth))
        return [*callbacks, _PhaseStartNotifier(self._describe_phase_start(phase), self.listener)]

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
        is_finished = record.get("finished", False)
        folder = self.folder.state_folder(phase, record["step"], is_finished)
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
        with self._report_writing("resume state"):
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
        self,
        phase: PlannedPhase,
        progress: ProgressCallback,
        sample: str,
        seconds: float,
        ended_early: str | None,
    ) -> None:
        parameters = phase.parameter_report
        tokens = progress.step * phase.tokens_per_step
        summary = PhaseSummary(
            name=phase.name,
            total_parameters=parameters.total,
            active_parameters=parameters.active,
            inactive_parameters=parameters.inactive,
            idle_experts=parameters.idle_experts,
            efficiency=parameters.efficiency,
            steps=progress.step,
            tokens=tokens,
            flops=progress.step * phase.flops_per_step,
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
            ended_early=ended_early,
            initial_evaluation=progress.initial_evaluation,
            evaluation=progress.evaluation,
        )
        self.summary.phases.append(summary)
        self.listener.phase_finished(summary)

    def _build_trainer(
        self, phase: PlannedPhase, steps_done: int, callbacks: list[Callback], show_bar: bool
    ) -> Trainer:
        accumulate = phase.settings.accumulate
        every = self.config.trainer.validate_every or max(1, phase.num_steps)
        return build_trainer(
            self.config.trainer,
            accelerator=self.context.machine.accelerator,
            **build_trainer_device_args(
                self.dist_context, self.config.trainer, self.context.machine.precision
            ),
            # Lightning skips the hooks where no step is left; see `_StopBeforeFirstStep`.
            max_steps=max(steps_done + 1, phase.num_steps),
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            callbacks=callbacks,
            default_root_dir=self.folder.path,
            logger=TrainerLogger(self.metrics, self.folder.path, phase.name, phase.first_step),
            log_every_n_steps=self.config.callbacks.log_every,
            num_sanity_val_steps=0
            if steps_done
            else -1,  # all of it: the phase's initial validation
            val_check_interval=every * accumulate,
            check_val_every_n_epoch=None,  # count batches
            enable_progress_bar=show_bar,
            enable_model_summary=False,
        )

    def _build_data_module(self, phase: PlannedPhase, steps_done: int) -> PackedDataModule:
        """Build the data module for the steps that remain after `steps_done`."""
        return PackedDataModule(
            self.context.data.train,
            self.context.data.validation,
            first_sample=phase.first_sample,
            num_batches=max(1, phase.num_steps) * phase.settings.accumulate,
            batch_size=phase.settings.batch_size,
            validation_sequences=self.config.trainer.validation_sequences,
            rank=self.dist_context.rank,
            world_size=self.dist_context.world_size,
            first_batch=steps_done * phase.settings.accumulate,
            evaluation_sets={
                name: each.samples for name, each in self.context.data.evaluation_sets.items()
            },
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
            initial_memory_bytes=self.summary.initial_memory_bytes,
        )

    def _growth_callback(self, phase: PlannedPhase) -> GrowthCallback:
        checks, optimizer = self.config.verification, self.config.optimizer
        previous = self.phase_state
        return GrowthCallback(
            [] if previous is None else phase.operators,
            previous=previous,
            optimizer_state=phase.settings.optimizer_state,
            probe=None if previous is None else self.context.make_probe(),
            seed=self.config.seed,
            tolerance=checks.tolerance,
            require_symmetry_breaking=checks.require_symmetry_breaking,
            rewarm_peak=optimizer.rewarm_peak,
            rewarm_steps=optimizer.rewarm_steps,
            betas=get_betas(optimizer),
            phase_name=phase.name,
            index=phase.index,
            on_boundary=self._report_boundary,
            dist_context=self.dist_context,
        )

    def _progress_callback(self, phase: PlannedPhase, shows_steps: bool) -> ProgressCallback:
        return ProgressCallback(
            phase,
            self.config.callbacks.log_every,
            self.listener,
            sum(finished.tokens for finished in self.summary.phases),
            sum(finished.flops for finished in self.summary.phases),
            self.start_time,
            self.peak_flops,
            self.context.nats_to_bits_per_byte,
            shows_steps,
            self.context.evaluation_bits_per_byte,
            self._report_evaluation,
        )

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
            self.config.trainer.validate_every,
            phase is self.plan.phases[-1] and self.config.checkpoint.keep_final_state,
        )

    def _checkpoint_callback(self, phase: PlannedPhase) -> PhaseCheckpointCallback:
        return PhaseCheckpointCallback(
            phase,
            self._checkpoint_dir,
            {**self.context.tokenizer_record, **self.context.source_metadata},
            self.context.tokenizer_files,
            self.config.seed,
            self.config.checkpoint.save_optimizer,
            self._report_writing,
            self.dist_context,
        )

    @contextmanager
    def _report_writing(self, name: str) -> Iterator[None]:
        """Show that something is written, unless a progress bar of the user's has the terminal."""
        is_shown = not has_progress_bar(self._user_callbacks)
        if is_shown:
            self.listener.task_progress(f"writing {name}", 0, None)
        yield
        if is_shown:
            self.listener.task_progress(f"writing {name}", 1, 1, "done")

    def _report_boundary(self, record: BoundaryRecord) -> None:
        self.summary.boundaries.append(record)
        self.listener.boundary_finished(record)

    def _report_evaluation(self, after: dict[str, SetMeasures]) -> None:
        """Add what the evaluation sets measured before and after a growth to its record."""
        if self.summary.boundaries and self.summary.phases:
            before = self.summary.phases[-1].evaluation
            boundary = self.summary.boundaries[-1].with_evaluation(before, after)
            self.summary.boundaries[-1] = boundary
            self.listener.boundary_evaluated(boundary)


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
    """Callback that stops a phase that has no step to train, so that all other hooks still run."""

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        trainer.should_stop = True


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801 - a context manager
    """Context manager that silences Lightning's hints about settings that growlm chooses on purpose."""

    def __enter__(self) -> None:
        super().__enter__()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        # A user who wants a summary of the model sees it.
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)
        for hint in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*treespec, LeafSpec.*",  # Lightning itself calls this deprecated torch function
            ".*smaller than the logging interval.*",
            ".*exists and is not empty.*",  # a phase's folder, after a resume
            ".*is not supported by the model summary.*",
            ".*your dataloader is not resumable.*",  # it begins at the right batch
            ".*WeightAveraging callback with a model that overrides the configure_model.*",
        ):
            warnings.filterwarnings("ignore", hint)
