"""Count the steps of a phase, and log history rows and validations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from growlm.config.phase_plan import PlannedPhase
from growlm.reporting.events import RunListener
from growlm.reporting.records import HistoryRow, SetMeasures
from growlm.training.phase_module import PhaseStage, StepMetrics
from growlm.training.router_monitor import EARLY_CHECK_STEPS, RouterMonitor
from growlm.verification.check_report import CheckReport

BOUNDARY_STEPS = 30
"""Steps after a growth, and at the end of a phase, that all have a row."""


class ProgressCallback(Callback):
    """Callback that logs history rows and validation losses; only steps with a row wait for the device.

    Around a growth every step has a row. The router measures of a row are means since the last one of the
    interval, and check 5 sees the rows of the interval alone.

    Args:
        phase: Phase that is trained.
        log_every: Steps between rows; the first and last steps always log one, and so do the `BOUNDARY_STEPS`
            after a growth and before the end of the phase.
        listener: Receiver of rows and events.
        tokens_before: Tokens of the run before this phase.
        flops_before: FLOPs of the run before this phase.
        run_start: Value of `time.perf_counter()` at the start of the run.
        peak_flops: Peak FLOP/s of all devices together; None if unknown.
        nats_to_bits_per_byte: Factor from validation loss to bits per byte; None if unknown.
        shows_steps: Whether the listener is notified of every step; False if a progress bar of the user's is.
        evaluation_factors: Factor from loss to bits per byte for each evaluation set, by name.
        on_initial_evaluation: Function called with the sets' losses before the first step.
    """

    def __init__(
        self,
        phase: PlannedPhase,
        log_every: int,
        listener: RunListener,
        tokens_before: int,
        flops_before: int,
        run_start: float,
        peak_flops: float | None,
        nats_to_bits_per_byte: float | None,
        shows_steps: bool = True,
        evaluation_factors: Mapping[str, float | None] | None = None,
        on_initial_evaluation: Callable[[dict[str, SetMeasures]], object] = lambda measures: None,
    ) -> None:
        self.evaluation_factors = dict(evaluation_factors or {})
        self.on_initial_evaluation = on_initial_evaluation
        self.initial_evaluation: dict[str, SetMeasures] = {}
        self.evaluation: dict[str, SetMeasures] = {}
        self.phase, self.log_every, self.listener = phase, log_every, listener
        self.tokens_before, self.flops_before = tokens_before, flops_before
        self.run_start, self.peak_flops = run_start, peak_flops
        self.nats_to_bits_per_byte, self.shows_steps = nats_to_bits_per_byte, shows_steps
        self.step = 0
        self.first_loss: float | None = None
        self.final_loss: float | None = None
        self.initial_val_loss = self.val_loss = float("nan")
        self.training_seconds = 0.0
        self._row_time, self._row_step = 0.0, 0
        self._router_monitor: RouterMonitor | None = None
        self._validation_start = 0.0

    def get_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the resume state: a JSON-serializable record, and tensors by name."""
        record: dict[str, Any] = {
            "step": self.step,
            "first_loss": self.first_loss,
            "final_loss": self.final_loss,
            "initial_val_loss": self.initial_val_loss,
            "val_loss": self.val_loss,
            "training_seconds": self.training_seconds,
            "seconds_since_row": time.perf_counter() - self._row_time,
            "row_step": self._row_step,
        }
        if self.evaluation_factors:
            record["initial_evaluation"] = self.initial_evaluation
            record["evaluation"] = self.evaluation
        if self._router_monitor is None:
            return record, {}
        watch, tensors = self._router_monitor.get_state()
        return record | {"routers": watch}, tensors

    def restore_state(
        self, stage: PhaseStage, record: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Restore what `get_state` returned; the initial validation is then skipped."""
        self.step = record["step"]
        self.first_loss, self.final_loss = record["first_loss"], record["final_loss"]
        self.initial_val_loss, self.val_loss = record["initial_val_loss"], record["val_loss"]
        self.initial_evaluation = record.get("initial_evaluation", {})
        self.evaluation = record.get("evaluation", {})
        self.training_seconds = record["training_seconds"]
        self._row_time = time.perf_counter() - record["seconds_since_row"]
        self._row_step = record["row_step"]
        if self.phase.model_config.is_moe:
            self._router_monitor = RouterMonitor(stage)
            self._router_monitor.restore_state(record["routers"], tensors)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing and watching the routers, unless the phase was resumed."""
        assert isinstance(pl_module, PhaseStage)
        if self.step:
            return
        self._router_monitor = RouterMonitor(pl_module) if self.phase.model_config.is_moe else None
        self._row_time = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the step after its last forward pass, and log a row if one is due."""
        if (batch_idx + 1) % self.phase.settings.accumulate:
            return
        assert isinstance(pl_module, PhaseStage)
        self.step += 1
        metrics = pl_module.step_metrics
        assert metrics is not None
        is_regular = (
            self.step == 1 or self.step == self.phase.num_steps or self.step % self.log_every == 0
        )
        has_row = is_regular or self._is_near_boundary()
        router_measures = self._measure_routers(metrics, is_regular, has_row)
        loss = float(metrics.loss / metrics.num_passes) if has_row else None
        if loss is not None:
            now = time.perf_counter()
            elapsed = now - self._row_time
            steps = self.step - self._row_step
            self.training_seconds += elapsed
            self._row_time, self._row_step = now, self.step
            rate = steps / elapsed
            row = self._counters() | {
                "loss": loss,
                # The optimizer already holds the next step's rate.
                "lr": self.phase.settings.lr * pl_module.lr_factor(self.step - 1),
                "grad_norm": float(pl_module.gradient_norm),  # type: ignore[arg-type]
                "tokens_per_second": rate * self.phase.tokens_per_step,
            }
            if self.peak_flops:
                row["mfu"] = rate * self.phase.flops_per_step / self.peak_flops
            if metrics.expert_loads is not None:
                row["aux_loss"] = float(metrics.aux_loss / metrics.num_passes)
                row |= router_measures
            self.first_loss = loss if self.step == 1 else self.first_loss
            self.final_loss = loss
            self.listener.row_logged(row)
        if pl_module.skip_reason is not None:
            self.listener.warning_logged(self._counters(), f"step skipped: {pl_module.skip_reason}")
        if self.shows_steps:
            self.listener.step_finished(self.phase.name, self.step, self.phase.num_steps, loss)
        if self.step == self.phase.num_steps:
            trainer.should_stop = True  # Lightning then validates, whatever its interval

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, which does not count as training."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the validation loss; the first one comes from Lightning's sanity check."""
        assert isinstance(pl_module, PhaseStage)
        self.val_loss = pl_module.validation_loss
        self.evaluation = {}
        for name, loss in pl_module.evaluation_losses.items():
            self.evaluation[name] = {"loss": loss}
            if (factor := self.evaluation_factors[name]) is not None:
                self.evaluation[name]["bits_per_byte"] = loss * factor
        if trainer.sanity_checking:
            self.initial_val_loss, self.initial_evaluation = self.val_loss, self.evaluation
        self._row_time += time.perf_counter() - self._validation_start
        measures: HistoryRow = {"val_loss": self.val_loss}
        if self.nats_to_bits_per_byte is not None:
            measures["val_bits_per_byte"] = self.val_loss * self.nats_to_bits_per_byte
        if self.evaluation:
            measures["evaluation"] = self.evaluation
        self.listener.validation_finished(self._counters() | measures)
        if self.evaluation and trainer.sanity_checking:
            self.on_initial_evaluation(self.evaluation)

    def check_routers(self) -> CheckReport | None:
        """Return the report of check 5 (router collapse) for the phase; None for a dense model."""
        return None if self._router_monitor is None else self._router_monitor.build_report()

    def _measure_routers(self, metrics: StepMetrics, is_regular: bool, has_row: bool) -> HistoryRow:
        if self._router_monitor is None:
            return {}
        self._router_monitor.accumulate(metrics)
        if not is_regular and self.step not in EARLY_CHECK_STEPS:
            return self._router_monitor.peek(self.step) if has_row else {}
        measures, warnings = self._router_monitor.measure(self.step)
        for warning in warnings:
            self.listener.warning_logged(self._counters(), warning)
        return measures

    def _is_near_boundary(self) -> bool:
        """Return whether the model has just grown, or the phase is about to end.

        Every phase ends so, whatever follows: its rows may be reused by a run that grows there.
        """
        has_grown = self.phase.index > 0 and bool(self.phase.operators)
        return (
            has_grown and self.step <= BOUNDARY_STEPS
        ) or self.step > self.phase.num_steps - BOUNDARY_STEPS

    def _counters(self) -> HistoryRow:
        return {
            "phase": self.phase.name,
            "phase_index": self.phase.index,
            "step": self.step,
            "global_step": self.phase.first_step + self.step,
            "tokens": self.tokens_before + self.step * self.phase.tokens_per_step,
            "flops": self.flops_before + self.step * self.phase.flops_per_step,
            "time_s": time.perf_counter() - self.run_start,
        }
