"""Forecast memory and time of every phase, and find config changes that make a plan fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations
from typing import Any

from omegaconf import OmegaConf

from growlm.config.load import get_config_folder
from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.schema import OperatorEntry, OptimizerConfig, PhaseConfig, RunConfig
from growlm.config.validation import check_config
from growlm.growth.grow_model import Operator
from growlm.growth.operators.optional_methods import iter_smaller_operators
from growlm.growth.operators.registry import available_operators
from growlm.optim import adamw_8bit
from growlm.planner.calibration import Calibration
from growlm.planner.memory_estimate import (
    MemoryEstimate,
    estimate_memory,
    estimate_pass_workload,
    min_memory_bytes,
)
from growlm.planner.sharding_layout import ShardingLayout, build_sharding_layout
from growlm.planner.time_estimate import PhaseWorkload, estimate_phase_workload
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from growlm.runtime.number_format import format_bytes

MAX_SUGGESTIONS = 3
USABLE_MEMORY_FRACTION = 0.98
"""Fraction of the memory that a suggested change may need, since a little less may be free when it is tried."""


class DoesNotFitError(UserError):
    """Error raised when a phase needs more memory than is available.

    Args:
        forecast: Forecast of the plan.
        changes: Changes that would make it fit.
    """

    def __init__(self, forecast: Forecast, changes: list[ConfigChange]) -> None:
        phase_forecast = forecast.phases_not_fitting[0]
        needed = format_bytes(phase_forecast.memory.peak)
        limit = format_bytes(forecast.machine.memory_bytes)
        suggestions = "; or ".join(" ".join(change.overrides) for change in changes)
        devices = forecast.layout.num_devices
        where = f" on each of {devices} devices" if devices > 1 else ""
        super().__init__(
            f"phases.{phase_forecast.phase.name}",
            f"{phase_forecast.phase.parameter_report.total:,} parameters",
            f"needs {needed}{where}; {limit} available (trainer.memory_gb). "
            + (f"Try: {suggestions}" if suggestions else "The planner knows no change that fits"),
        )


@dataclass(frozen=True)
class PhaseForecast:
    """Memory and work of one phase, and whether it fits."""

    phase: PlannedPhase
    memory: MemoryEstimate
    workload: PhaseWorkload
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """Return the phase's entry of `plan.json`."""
        phase = self.phase
        return {
            "name": phase.name,
            "total_parameters": phase.parameter_report.total,
            "active_parameters": phase.parameter_report.active,
            "steps": phase.num_steps,
            "tokens": phase.num_steps * phase.tokens_per_step,
            "flops": phase.num_steps * phase.flops_per_step,
            "lr": phase.settings.lr,
            "model": asdict(phase.model_config),
            "memory": {**asdict(self.memory), "peak": self.memory.peak},
            "fits": self.fits,
            "sent": self.workload.communication.bytes_by_kind(self.workload.passes_per_step),
        }


@dataclass(frozen=True)
class Forecast:
    """Forecast of every phase of a plan."""

    phase_forecasts: list[PhaseForecast]
    machine: Machine
    layout: ShardingLayout

    @property
    def phases_not_fitting(self) -> list[PhaseForecast]:
        """Phases that do not fit."""
        return [cost for cost in self.phase_forecasts if not cost.fits]

    def to_json(self, calibration: Calibration | None = None) -> dict[str, Any]:
        """Return what `growlm.plan format=json` prints; with times if a calibration is given."""
        phases = [cost.to_json() for cost in self.phase_forecasts]
        if calibration is not None:
            for phase, cost in zip(phases, self.phase_forecasts, strict=True):
                phase["seconds"] = cost.workload.estimate_seconds(calibration)
        return {
            "devices": self.layout.num_devices,
            "strategy": self.layout.strategy,
            "memory_limit": self.machine.memory_bytes,
            "phases": phases,
        }


def forecast_plan(
    config: RunConfig, plan: Plan, machine: Machine, strategy: str | None = None
) -> Forecast:
    """Forecast the memory and work of every phase.

    Args:
        config: Config of the run.
        plan: Plan made from the config.
        machine: Machine that each device is.
        strategy: `ddp`, `fsdp` or `expert`, instead of the run's own.
    """
    layout = build_sharding_layout(config.trainer, machine, strategy)
    phase_forecasts: list[PhaseForecast] = []
    previous_peak = 0
    for phase in plan.phases:
        previous = phase_forecasts[-1].phase if phase_forecasts else None
        pass_workload = estimate_pass_workload(config, plan, phase, machine)
        memory = estimate_memory(config, phase, previous, pass_workload, machine, layout)
        workload = estimate_phase_workload(
            config, plan, phase, previous, pass_workload, memory, machine, layout, previous_peak
        )
        fits = memory.peak <= machine.memory_bytes
        phase_forecasts.append(PhaseForecast(phase, memory, workload, fits))
        previous_peak = max(previous_peak, memory.peak)
    return Forecast(phase_forecasts, machine, layout)


def check_plan_fits(config: RunConfig, vocab_size: int, forecast: Forecast) -> None:
    """Check that every phase fits into memory.

    Raises:
        DoesNotFitError: If one does not; suggests changes that would make it fit.
    """
    if forecast.phases_not_fitting:
        raise DoesNotFitError(forecast, find_fitting_changes(config, vocab_size, forecast))


@dataclass(frozen=True)
class ConfigChange:
    """A change to a run's config, with the command-line overrides that make it."""

    overrides: tuple[str, ...]
    apply: Callable[[RunConfig], RunConfig]

    @property
    def changed_keys(self) -> set[str]:
        """The keys that the overrides set."""
        return {override.partition("=")[0] for override in self.overrides}

    def __add__(self, other: ConfigChange) -> ConfigChange:
        """Return a change that applies this one, then the other."""
        return ConfigChange(
            self.overrides + other.overrides, lambda config: other.apply(self.apply(config))
        )


def suggest_less_memory(
    config: RunConfig, vocab_size: int, forecast: Forecast, phase: PlannedPhase
) -> str:
    """Return advice for a phase that ran out of memory although the forecast said it would fit.

    Args:
        config: Config of the run.
        vocab_size: Vocabulary size of the tokenizer.
        forecast: Forecast of the run.
        phase: Phase that ran out of memory.
    """
    peak = forecast.phase_forecasts[phase.index].memory.peak
    machine = replace(
        forecast.machine, memory_bytes=round(0.9 * min(peak, forecast.machine.memory_bytes))
    )
    tighter = forecast_plan(config, make_plan(config, vocab_size), machine)
    changes = find_fitting_changes(config, vocab_size, tighter)
    if not changes:
        return "The planner knows no change that needs less memory"
    suggestions = "; or ".join(" ".join(change.overrides) for change in changes)
    return f"To use less memory, start a new run with: {suggestions}"


def find_fitting_changes(
    config: RunConfig, vocab_size: int, forecast: Forecast
) -> list[ConfigChange]:
    """Return the cheapest changes under which every phase fits, each one verified.

    At most `MAX_SUGGESTIONS` are returned, single changes before pairs.

    Args:
        config: Config of the run.
        vocab_size: Vocabulary size of the tokenizer.
        forecast: Forecast of the run, with phases that do not fit.
    """
    single = list(
        _candidate_changes(
            config, [cost.phase for cost in forecast.phases_not_fitting], forecast.machine
        )
    )
    found: list[ConfigChange] = []
    for change in chain(single, (a + b for a, b in combinations(single, 2))):
        if any(known.changed_keys <= change.changed_keys for known in found):
            continue  # a smaller change is already enough
        if _config_fits(change.apply(config), vocab_size, forecast.machine):
            found.append(change)
        if len(found) == MAX_SUGGESTIONS:
            break
    return found


def _config_fits(config: RunConfig, vocab_size: int, machine: Machine) -> bool:
    try:
        check_config(config)
        plan = make_plan(config, vocab_size)
    except UserError:
        return False
    if config.trainer.precision != "auto":
        machine = replace(machine, precision=config.trainer.precision)
    layout = build_sharding_layout(config.trainer, machine)
    if any(min_memory_bytes(config, phase, layout) > machine.memory_bytes for phase in plan.phases):
        return False
    machine = replace(machine, memory_bytes=round(USABLE_MEMORY_FRACTION * machine.memory_bytes))
    return not forecast_plan(config, plan, machine).phases_not_fitting


def _candidate_changes(
    config: RunConfig, phases: list[PlannedPhase], machine: Machine
) -> Iterator[ConfigChange]:
    """Yield single changes, the mildest first: those that affect only time, then the numbers, then the models."""
    if config.trainer.keep_freed_memory and machine.accelerator == "cpu":
        yield _trainer_change("keep_freed_memory", False)
    devices = config.trainer.devices or 1
    if devices > 1 and config.trainer.strategy != "fsdp":
        yield _trainer_change("strategy", "fsdp")
    if not config.trainer.activation_checkpointing:
        yield _trainer_change("activation_checkpointing", True)
    smaller = [_smaller_batch(p, devices) for p in phases if p.settings.batch_size > devices]
    if smaller:
        yield _combine_changes(smaller)
    if config.trainer.precision == "64-true":
        yield _trainer_change("precision", "32-true")
    if not machine.uses_half_precision and config.trainer.precision != "auto":
        yield _trainer_change("precision", "bf16-mixed")
    for name in (adamw_8bit.OPTIMIZER_NAME, "muon", "adafactor"):
        if name == adamw_8bit.OPTIMIZER_NAME and adamw_8bit.get_unavailable_reason(
            machine.accelerator
        ):
            continue
        if name != config.optimizer.name:
            yield _other_optimizer(name)
    yield from _less_growth(config)


def _trainer_change(setting: str, value: bool | str) -> ConfigChange:
    return ConfigChange(
        (f"trainer.{setting}={str(value).lower()}",),
        lambda config: replace(
            config,
            trainer=replace(config.trainer, **{setting: value}),  # type: ignore[arg-type]
        ),
    )


def _combine_changes(changes: list[ConfigChange]) -> ConfigChange:
    combined = changes[0]
    for change in changes[1:]:
        combined = combined + change
    return combined


def _smaller_batch(phase: PlannedPhase, devices: int) -> ConfigChange:
    """Return a change to one sequence per device and pass, with more accumulation: the same steps, but slower."""
    accumulate = phase.settings.accumulate * phase.settings.batch_size // devices
    path = f"phases.{phase.name}"
    return ConfigChange(
        (f"{path}.batch_size={devices}", f"{path}.accumulate={accumulate}"),
        lambda config: _with_phase(
            config, phase.name, lambda p: replace(p, batch_size=devices, accumulate=accumulate)
        ),
    )


def _other_optimizer(name: str) -> ConfigChange:
    file = OmegaConf.load(get_config_folder() / "optimizer" / f"{name}.yaml")
    settings = OptimizerConfig(**OmegaConf.to_container(file))  # type: ignore[arg-type]
    return ConfigChange((f"optimizer={name}",), lambda config: replace(config, optimizer=settings))


def _less_growth(config: RunConfig) -> Iterator[ConfigChange]:
    """Yield smaller operators, those late in the order first: fewer extra layers, then smaller scale factors."""
    for operator_name in reversed(available_operators()):
        for phase_name, phase in config.phases.items():
            for place, entry in enumerate(phase.grow):
                if operator_name in entry:
                    for smaller in iter_smaller_operators(entry[operator_name]):
                        yield _grow_change(phase_name, place, operator_name, entry, smaller)


def _grow_change(
    phase: str, place: int, name: str, entry: OperatorEntry, smaller: Operator
) -> ConfigChange:
    def change(settings: PhaseConfig) -> PhaseConfig:
        grow = list(settings.grow)
        grow[place] = {name: smaller}
        return replace(settings, grow=grow)

    before, after = vars(entry[name]), vars(smaller)
    overrides = tuple(
        f"phases.{phase}.grow.{place}.{name}.{key}={_format_value(value)}"
        for key, value in after.items()
        if value != before[key]
    )
    return ConfigChange(overrides, lambda config: _with_phase(config, phase, change))


def _format_value(value: Any) -> str:
    """Return a setting as Hydra reads it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _with_phase(
    config: RunConfig, name: str, change: Callable[[PhaseConfig], PhaseConfig]
) -> RunConfig:
    return replace(config, phases=config.phases | {name: change(config.phases[name])})
