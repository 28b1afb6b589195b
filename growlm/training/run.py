"""Running a plan: check, read, then train phase after phase, each grown from the one before."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf
from torch import Tensor

from growlm.config.build import build
from growlm.config.checks import check_config
from growlm.config.schema import RunConfig
from growlm.data import (
    PackedDataModule,
    PackedSamples,
    TokenizedCorpus,
    Tokenizer,
    find_text_files,
    load_tokenizer,
    prepare_data,
)
from growlm.errors import UserError
from growlm.reporting.console import ConsoleReporter
from growlm.reporting.history import HistoryFiles, write_json
from growlm.reporting.listener import Broadcast, RunListener
from growlm.reporting.metrics import MetricLogger
from growlm.reporting.plan_table import print_plan
from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary
from growlm.training.calibration import Calibration, calibration
from growlm.training.end_callback import ArtefactCallback, SampleCallback
from growlm.training.growth_callback import GrowthCallback
from growlm.training.hand_off import HandOff
from growlm.training.hardware import Machine, find_machine, peak_flops
from growlm.training.loggers import build_logger, check_logger
from growlm.training.memory import (
    KeepFreedMemory,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
    resident_memory_bytes,
)
from growlm.training.plan import Plan, PlannedPhase, make_plan
from growlm.training.planner import Forecast, check_fits, forecast
from growlm.training.progress_callback import ProgressCallback
from growlm.training.run_dir import make_run_dir
from growlm.training.stage import PhaseStage


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run_dir: Path
    summary: RunSummary


class Interrupted(Exception):  # noqa: N818 - no error
    """A signal stopped the run.

    Args:
        code: The exit code for it: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"stopped by {'SIGINT' if code == 130 else 'SIGTERM'}")


@dataclass(frozen=True)
class Prepared:
    """Everything that could be known to be wrong has been looked at; nothing is written yet."""

    config: RunConfig
    plan: Plan
    tokenizer: Tokenizer
    train: PackedSamples
    validation: PackedSamples
    forecast: Forecast
    speed: Calibration

    @property
    def machine(self) -> Machine:
        """Where it runs."""
        return self.forecast.machine

    def probe(self) -> Tensor:
        """The frozen tokens of the boundary checks: the first held-out sequences, (sequences, time)."""
        settings = self.config.verification
        count = min(settings.probe_sequences, self.validation.num_windows)
        length = min(settings.probe_length, self.config.sequence_length)
        return torch.stack([self.validation[i][:length] for i in range(count)])


def run_plan(config: RunConfig, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Run a plan, as the command does: prints to the console, leaves the files of a run.

    Args:
        config: From `growlm.config.load_config`, or built by hand.
        callbacks: More Lightning callbacks, the same in every phase.

    Raises:
        UserError: If something asked for is wrong; nothing was written.
        GrowthError: If a growth lost something.
    """
    console = ConsoleReporter()
    try:
        prepared = prepare(config, console)
        run_dir = make_run_dir(config)
        table = prepared.forecast.to_json(prepared.speed)
        print_plan(console.console, table)
        console.console.print(f"Run directory {run_dir}", markup=False, soft_wrap=True)
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_json(run_dir / "plan.json", table["phases"])
        listeners: list[RunListener] = [HistoryFiles(run_dir), console]
        logger = build_logger(config, run_dir)
        if logger is not None:
            listeners.append(MetricLogger(logger))
        everyone = Broadcast(listeners)
    except BaseException:
        console.close(failed=True)
        raise
    failed = True
    try:
        result = RunResult(run_dir, _Run(prepared, run_dir, everyone, callbacks).run())
        failed = False
        return result
    finally:
        everyone.close(failed)


def prepare(config: RunConfig, listener: RunListener) -> Prepared:
    """Check everything, then read and tokenize the data.

    Raises:
        UserError: If something asked for is wrong.
    """
    check_config(config)
    if config.data.source == "text":
        find_text_files(config.data.path or "")
    machine = find_machine(config.trainer)
    check_logger(config.logger)
    _extra_callbacks(config)
    tokenizer = load_tokenizer(config.tokenizer.name)
    plan = make_plan(config, tokenizer.vocab_size)
    table = forecast(config, plan, machine)
    check_fits(config, tokenizer.vocab_size, table)
    speed = calibration(machine, lambda: listener.task_progress("measuring this machine", 0, None))
    corpus = _read(config, tokenizer, listener)
    length, seed = config.sequence_length, config.seed
    return Prepared(
        config=config,
        plan=plan,
        tokenizer=tokenizer,
        train=PackedSamples(corpus.train, length, seed),
        validation=PackedSamples(corpus.validation, length, seed, shuffle=False),
        forecast=table,
        speed=speed,
    )


def _read(config: RunConfig, tokenizer: Tokenizer, listener: RunListener) -> TokenizedCorpus:
    data = config.data
    total = data.documents if data.source == "embedded" else None
    return prepare_data(
        source=data.source,
        path=data.path,
        sample_by=data.sample_by,
        documents=data.documents,
        seed=config.seed,
        validation_every=data.validation_every,
        tokenizer=tokenizer,
        progress=lambda done: listener.task_progress("reading documents", done, total),
    )


def _extra_callbacks(config: RunConfig) -> list[Callback]:
    callbacks = []
    for name, spec in config.callbacks.extra.items():
        callback = build(f"callbacks.extra.{name}", spec)
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.extra.{name}", spec["_target_"], "is no Lightning callback")
        callbacks.append(callback)
    return callbacks


class _Run:
    """The state that phases hand on: the model, and where the run's counters stand."""

    def __init__(
        self,
        prepared: Prepared,
        run_dir: Path,
        listener: RunListener,
        callbacks: Sequence[Callback],
    ) -> None:
        self.prepared, self.run_dir, self.listener = prepared, run_dir, listener
        self.callbacks = callbacks
        self.config, self.plan = prepared.config, prepared.plan
        self.hand_off: HandOff | None = None
        self.tokens = self.flops = 0
        self.start = time.perf_counter()
        self.peak_flops = peak_flops(prepared.machine)
        self.summary = RunSummary(
            name=self.config.name,
            seed=self.config.seed,
            device=prepared.machine.accelerator,
            precision=prepared.machine.precision,
        )

    def run(self) -> RunSummary:
        release_memory()
        self.summary.initial_memory_bytes = resident_memory_bytes()
        with _quiet_lightning():
            for phase in self.plan.phases:
                self._run_phase(phase)
        self.summary.wall_time_s = time.perf_counter() - self.start
        self.listener.run_finished(self.summary)
        return self.summary

    def _run_phase(self, phase: PlannedPhase) -> None:
        phase_start = time.perf_counter()
        release_memory()
        reset_peak_memory()
        stage = PhaseStage(
            self.plan,
            phase,
            self.config.optimizer,
            self.config.schedule,
            self.config.seed,
            self.config.trainer,
        )
        data = self._data(phase)
        progress = self._progress_callback(phase, data)
        sample = SampleCallback(self.config.callbacks, self.prepared.tokenizer, self.config.seed)
        growth = [self._growth_callback(phase, self.hand_off)] if self.hand_off is not None else []
        trainer = self._trainer(
            phase,
            [
                *([KeepFreedMemory()] if self.config.trainer.keep_freed_memory else []),
                *growth,
                _Announce(self._phase_start(phase), self.listener),
                self._artefact_callback(phase),  # before the clock of `progress` starts
                progress,
                sample,
                *_extra_callbacks(self.config),
                *self.callbacks,
            ],
        )
        _fit(trainer, stage, data)
        if progress.step != phase.steps:
            raise RuntimeError(
                f"phase {phase.name} ended after {progress.step} of {phase.steps} steps: a callback of "
                "callbacks.extra stopped it, and the phases after it would be wrong"
            )
        factors = stage.scaling.lasting_factors
        states = stage.final_states(trainer.optimizers[0])
        self.hand_off = HandOff(phase.name, stage.model, states, factors)
        self.tokens += phase.steps * phase.tokens_per_step
        self.flops += phase.steps * phase.flops_per_step
        self._finish_phase(phase, progress, sample.text, time.perf_counter() - phase_start)

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
            wall_time_s=seconds,
            tokens_per_second=tokens / progress.training_seconds,
            peak_memory_bytes=peak_memory_bytes(),
            sample=sample,
            router_check=progress.router_check(),
        )
        self.summary.phases.append(summary)
        self.listener.phase_finished(summary)

    def _trainer(self, phase: PlannedPhase, callbacks: list[Callback]) -> Trainer:
        return Trainer(
            accelerator=self.prepared.machine.accelerator,
            devices=1,
            precision=self.prepared.machine.precision,  # type: ignore[arg-type]
            max_steps=phase.steps,
            max_epochs=1,
            accumulate_grad_batches=phase.settings.accumulate,
            callbacks=callbacks,
            default_root_dir=self.run_dir,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,  # it would hold a second copy of everything in memory
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _data(self, phase: PlannedPhase) -> PackedDataModule:
        batch_size = phase.settings.batch_size
        return PackedDataModule(
            self.prepared.train,
            self.prepared.validation,
            first_sample=phase.first_sample,
            num_batches=phase.steps * phase.settings.accumulate,
            batch_size=batch_size,
            validation_sequences=self.config.trainer.validation_sequences,
        )

    def _phase_start(self, phase: PlannedPhase) -> PhaseStart:
        return PhaseStart(
            name=phase.name,
            index=phase.index,
            num_phases=len(self.plan.phases),
            steps=phase.steps,
            lr=phase.settings.lr,
            device=self.prepared.machine.accelerator,
            precision=self.prepared.machine.precision,
            parameters=phase.parameters,
        )

    def _growth_callback(self, phase: PlannedPhase, hand_off: HandOff) -> GrowthCallback:
        return GrowthCallback(
            hand_off,
            phase,
            self.prepared.probe(),
            self.config.verification,
            self.config.optimizer,
            self.config.seed,
            self._tell_boundary,
        )

    def _progress_callback(self, phase: PlannedPhase, data: PackedDataModule) -> ProgressCallback:
        return ProgressCallback(
            phase,
            self.config.callbacks.log_every,
            self.listener,
            self.tokens,
            self.flops,
            self.start,
            self.peak_flops,
            data.val_dataloader(),
            self.config.trainer.validate_every,
        )

    def _artefact_callback(self, phase: PlannedPhase) -> ArtefactCallback:
        return ArtefactCallback(
            phase,
            self.run_dir / "checkpoints",
            {"tokenizer": self.config.tokenizer.name, "run": self.config.name},
            self.config.seed,
            self.config.checkpoint.save_optimizer,
            lambda name: self.listener.task_progress(f"writing {name}", 0, None),
        )

    def _tell_boundary(self, record: BoundaryRecord) -> None:
        self.summary.boundaries.append(record)
        self.listener.boundary_passed(record)


def _fit(trainer: Trainer, stage: PhaseStage, data: PackedDataModule) -> None:
    """Train; a signal ends in `Interrupted` (Lightning turns it into an exit of its own)."""
    try:
        trainer.fit(stage, train_dataloaders=data.train_dataloader())
    except SIGTERMException as error:
        raise Interrupted(143) from error
    except SystemExit as error:
        raise Interrupted(130) from error


class _Announce(Callback):
    """The banner of a phase comes after its boundary and before its first step."""

    def __init__(self, start: PhaseStart, listener: RunListener) -> None:
        self.start, self.listener = start, listener

    def on_fit_start(self, trainer: object, pl_module: object) -> None:
        self.listener.phase_started(self.start)


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
