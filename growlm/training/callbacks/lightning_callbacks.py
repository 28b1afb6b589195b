"""Say which of Lightning's callbacks a plan accepts, and how each behaves at boundaries and in resumes.

docs/own_classes.md has the table.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from importlib.util import find_spec

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden

from growlm.config.schema import RunConfig
from growlm.runtime.errors import UserError

REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: "unfreezes layers from epoch to epoch, and a phase of a plan is one epoch",
    BasePredictionWriter: "writes predictions, and a plan makes none",
    BatchSizeFinder: "the batch size is part of the plan; python -m growlm.plan says what fits",
    GradientAccumulationScheduler: (
        "changes accumulation from epoch to epoch, and a phase of a plan is one epoch; set phases.NAME.accumulate"
    ),
    LearningRateFinder: (
        "trains and takes back steps, which a plan cannot; sweep phases.NAME.lr with -m instead"
    ),
    OnExceptionCheckpoint: (
        "makes trainer.fit begin from its own file, which would undo a boundary; a plan that is stopped leaves a "
        "state by itself (resume=RUN_DIR)"
    ),
    ModelPruning: "replaces weights by masked ones, which have no labels and cannot grow",
    StochasticWeightAveraging: (
        "averages from epoch to epoch, and a phase of a plan is one epoch; use WeightAveraging or "
        "EMAWeightAveraging"
    ),
}
"""Callbacks that cannot do in a plan what their documentation says, and why."""

SPIKE_REASON = "its state_dict() fails in this version of Lightning, so that no state of the run could be written"
"""Why `SpikeDetection` is refused: it reads an attribute that it does not have (seen in Lightning 2.6.6)."""

LOGGED_METRICS = ("train/loss", "val/loss")
"""Names in `trainer.callback_metrics`, unless a callback logs further ones."""
COUNTERS = ("step", "epoch")
"""Further names that `ModelCheckpoint` can monitor."""

NEED_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)


def check_callbacks(callbacks: Mapping[str, Callback], config: RunConfig, accelerator: str) -> None:
    """Check that a plan can use the callbacks, before anything is written.

    Args:
        callbacks: Callbacks, by the setting that named each.
        config: Config of the run.
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: For the first one that it cannot.
    """
    for key, callback in callbacks.items():
        reason = _find_problem(callback, config, accelerator) or _find_unknown_monitor(
            callback, callbacks.values(), config
        )
        if reason:
            raise UserError(key, type(callback).__name__, reason)
    _check_state_keys(callbacks)


def _has_no_logger(config: RunConfig) -> bool:
    return config.logger.name == "none" and not config.logger.extra


def _find_problem(callback: Callback, config: RunConfig, accelerator: str) -> str | None:
    for kind, reason in REFUSED.items():
        if isinstance(callback, kind):
            return reason
    if isinstance(callback, NEED_LOGGER) and _has_no_logger(config):
        return "writes to a logger, and logger=none; use another one (logger=csv)"
    if (
        isinstance(callback, DeviceStatsMonitor)
        and accelerator == "cpu"
        and not find_spec("psutil")
    ):
        return "needs psutil on a CPU: pip install psutil"
    if isinstance(callback, SpikeDetection) and not hasattr(callback, "running"):
        return SPIKE_REASON
    if isinstance(callback, WeightAveraging) and config.trainer.strategy == "fsdp":
        return "copies whole models, and trainer.strategy=fsdp shards them; use ddp"
    return None


def _find_unknown_monitor(
    callback: Callback, callbacks: Collection[Callback], config: RunConfig
) -> str | None:
    """Return what is wrong with the metric that a callback waits for, if no other one may log it."""
    monitor = getattr(callback, "monitor", None)
    logged = (*LOGGED_METRICS, *(f"val/{name}/loss" for name in config.data.evaluation_sets))
    if not isinstance(monitor, str) or monitor in (*logged, *COUNTERS):
        return None
    if not all(_logs_no_metrics(each) for each in callbacks):
        return None
    near = difflib.get_close_matches(monitor, logged, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"monitor={monitor} is not logged; a run logs {' and '.join(logged)}{hint}"


def _logs_no_metrics(callback: Callback) -> bool:
    is_lightnings = type(callback).__module__.startswith("lightning.pytorch.callbacks")
    return is_lightnings and not isinstance(callback, LambdaCallback | LearningRateMonitor)


def _check_state_keys(callbacks: Mapping[str, Callback]) -> None:
    """Check that callbacks with a state have a state_key each, which Lightning refuses only in the run.

    Raises:
        UserError: If two have the same.
    """
    keys: dict[str, str] = {}
    for key, callback in callbacks.items():
        if not is_overridden("state_dict", instance=callback, parent=Callback):
            continue
        other = keys.setdefault(callback.state_key, key)
        if other != key:
            change = (
                "give them different arguments, or leave one out"
                if is_lightning_callback(callback)
                else "give the class a property state_key that differs"
            )
            reason = f"has the same state_key as {other}; {change}"
            raise UserError(key, type(callback).__name__, reason)


def carry_timers(callbacks: Mapping[str, Callback], earlier: Mapping[str, Callback]) -> None:
    """Let the `Timer`s of a phase begin with the time that those of the phase before have counted."""
    for name, callback in callbacks.items():
        if isinstance(callback, Timer) and isinstance(before := earlier.get(name), Timer):
            callback.load_state_dict(before.state_dict())


def is_lightning_callback(callback: Callback) -> bool:
    """Return whether a callback is one of Lightning's, or of a class derived from one.

    Those keep results of one fit, so that each phase needs a new one.
    """
    kinds = (kind for kind in type(callback).__mro__ if kind is not Callback)
    return any(kind.__module__.startswith("lightning.pytorch.callbacks") for kind in kinds)


def has_progress_bar(callbacks: Mapping[str, Callback]) -> bool:
    """Return whether one of the callbacks shows steps on the terminal, as growlm's own display does."""
    return any(isinstance(callback, ProgressBar) for callback in callbacks.values())


def reads_every_loss(callbacks: Mapping[str, Callback]) -> bool:
    """Return whether one of the callbacks shows or monitors the training loss of every step."""
    return any(
        isinstance(callback, ProgressBar) or getattr(callback, "monitor", None) == "train/loss"
        for callback in callbacks.values()
    )


def find_expired_timer(trainer: Trainer) -> Timer | None:
    """Return a `Timer` whose time is over; None if there is none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            left = callback.time_remaining()
            if left is not None and left <= 0:
                return callback
    return None


def explain_early_end(callbacks: Mapping[str, Callback]) -> str:
    """Return why a phase has ended before its last step."""
    for name, callback in callbacks.items():
        if isinstance(callback, EarlyStopping):
            message = getattr(callback, "stopping_reason_message", None)
            if message:
                return f"{name}: {message}"
    return "a callback set trainer.should_stop"
