"""The phases of a run, one after another: each trained, each grown from the one before."""

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

from growlm.checkpoint.resume_state import RECORD, RunState, write_state
from growlm.config.phase_plan import PlannedPhase
from growlm.data import PackedDataModule
from growlm.growth.optimizer_state import State
from growlm.model.transformer import TransformerLM
from growlm.optim import adamw_8bit
from growlm.planner.forecast import less_memory
from growlm.reporting.events import RunListener
from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary
from growlm.reporting.run_history import HistoryFiles
from growlm.runtime.errors import RunError
from growlm.runtime.hardware import peak_flops
from growlm.runtime.memory import (
    KeepFreedMemory,
    is_out_of_memory,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
    resident_memory_bytes,
)
from growlm.runtime.signals import Interrupted, StopRequests
from growlm.training.callbacks.checkpoint_callback import (
    ArtefactCallback,
    SampleCallback,
    forget_artefacts,
)
from growlm.training.callbacks.growth_callback import GrowthCallback, scaling_of
from growlm.training.callbacks.pretrained_callback import PretrainedCallback
from growlm.training.callbacks.progress_callback import ProgressCallback
from growlm.training.callbacks.resume_callback import RestoreCallback, StateCallback
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import HandOff
from growlm.training.resume.phase_reuse import PhaseReuse
from growlm.training.resume.state_schema import restoring
from growlm.training.run_context import RunContext
from growlm.training.run_folder import RunFolder
from growlm.training.run_setup import extra_callbacks
from growlm.training.strategy import describe_devices, devices_of, mesh_of_run


class PhaseRunner:
    """Trains the phases, and holds what they hand on: the model, and where the run's counters stand.

    Args:
        context: The run.
        folder: Where it leaves its files.
        listener: Is told of everything.
        history: Its position is part of every state; the first process has one.
        callbacks: More of Lightning's, the same in every phase.
        requests: Who may stop it.
        reuse: Is given the state after each phase.
    """

    def __init__(
        self,
        context: RunContext,
        folder: RunFolder,
        listener: RunListener,
        history: HistoryFiles | None,
        callbacks: Sequence[Callback],
        requests: StopRequests,
        reuse: PhaseReuse,
    ) -> None:
        self.context, self.folder, self.listener = context, folder, listener
        self.history, self.world = history, context.world
        self._devices = describe_devices(
            context.machine.accelerator, self.world, context.config.trainer
        )
        self.callbacks, self.requests, self.reuse = callbacks, requests, reuse
        self.config, self.plan = context.config, context.plan
        self.mesh = mesh_of_run(self.world, self.config.trainer, context.machine.accelerator)
        self.hand_off: HandOff | None = None
        compiles = self.config.optimizer.name == adamw_8bit.NAME
        self._compiling = [_Compiling(listener)] if compiles else []
        self.start = time.perf_counter()
        peak = self.world.first(lambda: peak_flops(context.machine))
        self.peak_flops = None if peak is None else peak * self.world.size
        self.summary = RunSummary(
            name=self.config.name,
            seed=self.config.seed,
            device=self._devices,
            precision=context.machine.precision,
            reused=reuse.reused,
        )

    def run(self, state: RunState | None) -> RunSummary:
        """Run every phase, or from a state on the rest of them."""
        release_memory()
        self.summary.initial_memory_bytes = resident_memory_bytes()
        if state is not None:
            with restoring(state.folder / RECORD):
                self.context.data.train.recall(state.record.get("data"))
        first = 0 if state is None else self._go_on_from(state)
        if state is None:
            self.world.first(lambda: forget_artefacts(self._checkpoints, self.plan.phases))
        with _quiet_lightning():
            for phase in self.plan.phases[first:]:
                with _advising_on_memory(self.context, phase):
                    self._run_phase(phase, state if self.hand_off is None else None)
        self.summary.wall_time_s = time.perf_counter() - self.start
        self.listener.run_finished(self.summary)
        self.world.first(self.folder.remove_states)
        return self.summary

    def _go_on_from(self, state: RunState) -> int:
        """Take over what is saved of the run; the phase to go on with."""
        record, saved = state.record, state.record["run"]
        self.start -= saved["seconds"]
        self.summary.phases, self.summary.boundaries = (
            list(saved["phases"]),
            list(saved["boundaries"]),
        )
        phase = self.plan.phase(record["phase"])
        later = self.plan.phases[phase.index + 1 :]
        unfinished = phase if record["step"] < phase.steps else None
        self.world.first(lambda: forget_artefacts(self._checkpoints, later, unfinished))
        if unfinished is not None:
            return phase.index
        scaling = scaling_of(self.plan, phase.index, self.config.optimizer)
        self.hand_off = HandOff(
            phase.name,
            state.model(self.mesh),
            state.optimizer_states(self.mesh),
            scaling.lasting_factors,
        )
        return phase.index + 1

    def _run_phase(self, phase: PlannedPhase, state: RunState | None) -> None:
        """Train a phase, from its beginning or from a state of it."""
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
            self.world,
            self.mesh,
        )
        data = self._data(phase, saved["step"])
        progress = self._progress_callback(phase, data)
        sample = SampleCallback(self.config.callbacks, self.context.tokenizer, self.config.seed)
        users = extra_callbacks(self.config)
        users |= {f"given {index}": callback for index, callback in enumerate(self.callbacks)}
        trainer = self._trainer(
            phase,
            phase.steps - saved["step"],
            [
                *([KeepFreedMemory()] if self.config.trainer.keep_freed_memory else []),
                *self._beginning(phase, state, progress, users),
                *([] if phase.steps else [_Untrained()]),
                self._artefact_callback(phase),  # before the clock of `progress` starts
                progress,
                *(self._compiling if phase.steps else []),
                sample,
                *users.values(),
                self._state_callback(phase, progress, users, phase_start),
            ],
        )
        trainer.fit(stage, train_dataloaders=data.train_dataloader())
        if progress.step != phase.steps:
            raise RuntimeError(
                f"phase {phase.name} ended after {progress.step} of {phase.steps} steps: a callback of "
                "callbacks.extra stopped it, and the phases after it would be wrong"
            )
        factors = stage.scaling.lasting_factors
        states = stage.final_states(trainer.optimizers[0])
        self.hand_off = HandOff(phase.name, stage.model, states, factors)
        self._finish_phase(phase, progress, sample.text, time.perf_counter() - phase_start)
        if phase is not self.plan.phases[-1]:
            record = {"phase": phase.name, "step": phase.steps}
            self._write_state(phase, phase_start, stage.model, states, record, {}, {})
            if self.history is not None:
                self.reuse.phase_ended(phase, self.history.path)
            self.requests.deferring = False
            code = self.requests.asked
            (asked,) = self.world.largest([-1 if code is None else code])
            if asked >= 0:
                raise Interrupted(int(asked), f"after {phase.name}")

    def _beginning(
        self,
        phase: PlannedPhase,
        state: RunState | None,
        progress: ProgressCallback,
        users: dict[str, Callback],
    ) -> list[Callback]:
        """Where the phase's model comes from: a state, the phase before, or nowhere."""
        if state is not None:
            scaling = scaling_of(self.plan, phase.index, self.config.optimizer)
            return [RestoreCallback(state, scaling, progress, users)]
        if self.hand_off is not None:
            model_from: list[Callback] = [self._growth_callback(phase, self.hand_off)]
        elif self.context.pretrained is not None:
            model_from = [PretrainedCallback(self.context.pretrained, phase)]
        else:
            model_from = []
        return [*model_from, _Announce(self._phase_start(phase), self.listener)]

    def _write_state(
        self,
        phase: PlannedPhase,
        phase_start: float,
        model: TransformerLM,
        states: dict[str, State],
        record: dict[str, Any],
        tensors: dict[str, Tensor],
        kept: dict[str, Any],
    ) -> None:
        global_step = phase.first_step + record["step"]
        folder = self.folder.state_folder(phase, record["step"])
        self.listener.task_progress("writing the state to resume from", 0, None)
        start = time.perf_counter()
        if self.history is not None:
            record["data"] = self.context.data.train.mark(
                phase.first_sample + record["step"] * phase.samples_per_step
            )
            record["phase_seconds"] = time.perf_counter() - phase_start
            record["run"] = {
                "global_step": global_step,
                "seconds": time.perf_counter() - self.start,
                "phases": [asdict(summary) for summary in self.summary.phases],
                "boundaries": [asdict(boundary) for boundary in self.summary.boundaries],
                "history": self.history.position(),
            }
        write_state(
            folder,
            global_step,
            model,
            states,
            tensors,
            record,
            kept,
            self.world,
            makes_parents=False,  # if it was removed, the run stops
        )
        self.summary.states_written += 1
        self.summary.states_s += time.perf_counter() - start

    @property
    def _checkpoints(self) -> Path:
        return self.folder.path / "checkpoints"

    def _finish_phase(
        self, phase: PlannedPhase, progress: ProgressCallback, sample: str, seconds: float
    ) -> None:
        parameters = phase.parameters
        tokens = phase.steps * phase.tokens_per_step
        summary = PhaseSummary(
            name=phase.name,
            total_parameters=parameters.total,
            active_parameters=parameters.active,
            inactive_parameters=parameters.inactive,
            idle_experts=parameters.idle_experts,
            efficiency=parameters.efficiency,
            steps=phase.steps,
            tokens=tokens,
            flops=phase.steps * phase.flops_per_step,
            first_loss=progress.first_loss,
            final_loss=progress.final_loss,
            initial_val_loss=progress.initial_val_loss,
            val_loss=progress.val_loss,
            val_bits_per_byte=progress.val_loss * self.context.bits_per_nat,
            wall_time_s=seconds,
            tokens_per_second=tokens / progress.training_seconds if tokens else None,
            peak_memory_bytes=int(self.world.largest([peak_memory_bytes()])[0]),
            sample=sample,
            router_check=progress.router_check(),
        )
        self.summary.phases.append(summary)
        self.listener.phase_finished(summary)

    def _trainer(self, phase: PlannedPhase, steps: int, callbacks: list[Callback]) -> Trainer:
        return Trainer(
            accelerator=self.context.machine.accelerator,
            **devices_of(self.world, self.config.trainer, self.context.machine.precision),
            max_steps=max(1, steps),  # with 0, Lightning would skip the hooks too; see `_Untrained`
            max_epochs=1,
            accumulate_grad_batches=phase.settings.accumulate,
            callbacks=callbacks,
            default_root_dir=self.folder.path,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,  # it would hold a second copy of everything in memory
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _data(self, phase: PlannedPhase, done: int) -> PackedDataModule:
        """What the phase reads after `done` steps."""
        return PackedDataModule(
            self.context.data.train,
            self.context.data.validation,
            first_sample=phase.first_sample + done * phase.samples_per_step,
            num_batches=max(1, phase.steps - done) * phase.settings.accumulate,
            batch_size=phase.settings.batch_size,
            validation_sequences=self.config.trainer.validation_sequences,
            rank=self.world.rank,
            size=self.world.size,
        )

    def _phase_start(self, phase: PlannedPhase) -> PhaseStart:
        return PhaseStart(
            name=phase.name,
            index=phase.index,
            num_phases=len(self.plan.phases),
            steps=phase.steps,
            lr=phase.settings.lr,
            device=self._devices,
            precision=self.context.machine.precision,
            parameters=phase.parameters,
        )

    def _growth_callback(self, phase: PlannedPhase, hand_off: HandOff) -> GrowthCallback:
        return GrowthCallback(
            hand_off,
            phase,
            self.context.probe(),
            self.config.verification,
            self.config.optimizer,
            self.config.seed,
            self._tell_boundary,
            self.world,
        )

    def _progress_callback(self, phase: PlannedPhase, data: PackedDataModule) -> ProgressCallback:
        return ProgressCallback(
            phase,
            self.config.callbacks.log_every,
            self.listener,
            sum(before.steps * before.tokens_per_step for before in self._before(phase)),
            sum(before.steps * before.flops_per_step for before in self._before(phase)),
            self.start,
            self.peak_flops,
            data.val_dataloader(),
            self.context.bits_per_nat,
            self.config.trainer.validate_every,
        )

    def _before(self, phase: PlannedPhase) -> list[PlannedPhase]:
        return self.plan.phases[: phase.index]

    def _state_callback(
        self,
        phase: PlannedPhase,
        progress: ProgressCallback,
        users: dict[str, Callback],
        phase_start: float,
    ) -> StateCallback:
        write = partial(self._write_state, phase, phase_start)
        return StateCallback(
            phase, self.config.checkpoint, self.requests, progress, users, write, self.world
        )

    def _artefact_callback(self, phase: PlannedPhase) -> ArtefactCallback:
        return ArtefactCallback(
            phase,
            self._checkpoints,
            {"tokenizer": self.config.tokenizer.name, **self.context.origin},
            self.context.tokenizer_files,
            self.config.seed,
            self.config.checkpoint.save_optimizer,
            lambda name: self.listener.task_progress(f"writing {name}", 0, None),
            self.world,
        )

    def _tell_boundary(self, record: BoundaryRecord) -> None:
        self.summary.boundaries.append(record)
        self.listener.boundary_passed(record)


@contextmanager
def _advising_on_memory(context: RunContext, phase: PlannedPhase) -> Iterator[None]:
    """Say what would need less memory, where there was not enough."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = str(error).strip().splitlines()[0]
        advice = less_memory(context.config, context.tokenizer.vocab_size, context.forecast, phase)
        raise RunError(f"phase {phase.name}: out of memory ({what}). {advice}") from error


class _Announce(Callback):
    """The banner of a phase comes after its boundary and before its first step."""

    def __init__(self, start: PhaseStart, listener: RunListener) -> None:
        self.start, self.listener = start, listener

    def on_fit_start(self, trainer: object, pl_module: object) -> None:
        self.listener.phase_started(self.start)


class _Compiling(Callback):
    """Says once what the first step waits for: half a minute, where it was never done before."""

    def __init__(self, listener: RunListener) -> None:
        self.listener, self.is_said = listener, False

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        if not self.is_said:
            self.listener.task_progress("compiling the optimizer's step", 0, None)
        self.is_said = True


class _Untrained(Callback):
    """A phase without steps goes through the hooks of any other."""

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        trainer.should_stop = True


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801 - a context manager
    """Lightning's hints about settings that are chosen here on purpose."""

    def __enter__(self) -> None:
        super().__enter__()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        for hint in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*treespec, LeafSpec.*",  # its own call of a function that torch has deprecated
        ):
            warnings.filterwarnings("ignore", hint)
