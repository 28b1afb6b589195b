"""The planner: what every phase costs, whether it fits, and which changes would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations
from typing import Any

from omegaconf import OmegaConf
from rich.filesize import decimal

from growlm.config.load import config_folder
from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.schema import OptimizerConfig, PhaseConfig, RunConfig
from growlm.config.validation import check_config
from growlm.optim import adamw_8bit
from growlm.planner.calibration import Calibration
from growlm.planner.memory_estimate import Footprint, footprint, least_bytes, pass_work
from growlm.planner.sharding_layout import Layout, layout_of
from growlm.planner.time_estimate import PhaseWork, phase_work
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine

OFFERS = 3
MARGIN = 0.98
"""Of the memory that an offer may need: a little less may be free when it is tried."""


class DoesNotFitError(UserError):
    """A phase needs more memory than there is.

    Args:
        forecast: The planner's table.
        changes: What would fit.
    """

    def __init__(self, forecast: Forecast, changes: list[Change]) -> None:
        cost = forecast.refused[0]
        needed, limit = decimal(cost.footprint.peak), decimal(forecast.machine.memory)
        offers = "; or ".join(" ".join(change.overrides) for change in changes)
        devices = forecast.layout.devices
        where = f" on each of {devices} devices" if devices > 1 else ""
        super().__init__(
            f"phases.{cost.phase.name}",
            f"{cost.phase.parameters.total:,} parameters",
            f"needs {needed}{where}, there are {limit} (trainer.memory_gb). "
            + (f"These fit: {offers}" if offers else "No change that the planner knows fits"),
        )


@dataclass(frozen=True)
class PhaseCost:
    """A phase of the planner's table."""

    phase: PlannedPhase
    footprint: Footprint
    work: PhaseWork
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """As in `plan.json`."""
        phase = self.phase
        return {
            "name": phase.name,
            "total_parameters": phase.parameters.total,
            "active_parameters": phase.parameters.active,
            "steps": phase.steps,
            "tokens": phase.steps * phase.tokens_per_step,
            "flops": phase.steps * phase.flops_per_step,
            "lr": phase.settings.lr,
            "model": asdict(phase.model),
            "memory": {**asdict(self.footprint), "peak": self.footprint.peak},
            "fits": self.fits,
            "sent": self.work.traffic.sent(self.work.passes),
        }


@dataclass(frozen=True)
class Forecast:
    """The planner's table."""

    costs: list[PhaseCost]
    machine: Machine
    layout: Layout

    @property
    def refused(self) -> list[PhaseCost]:
        """Phases that do not fit."""
        return [cost for cost in self.costs if not cost.fits]

    def to_json(self, calibration: Calibration | None = None) -> dict[str, Any]:
        """As `growlm.plan format=json` prints it; with times where the device's speed is given."""
        phases = [cost.to_json() for cost in self.costs]
        if calibration is not None:
            for phase, cost in zip(phases, self.costs, strict=True):
                phase["seconds"] = cost.work.seconds(calibration)
        return {
            "devices": self.layout.devices,
            "strategy": self.layout.strategy,
            "memory_limit": self.machine.memory,
            "phases": phases,
        }


def forecast(
    config: RunConfig, plan: Plan, machine: Machine, strategy: str | None = None
) -> Forecast:
    """Cost every phase.

    Args:
        config: The run.
        plan: Made from it.
        machine: What each of its devices is.
        strategy: `ddp`, `fsdp` or `expert`, in place of the run's own.
    """
    layout = layout_of(config.trainer, machine, strategy)
    costs: list[PhaseCost] = []
    had = 0
    for phase in plan.phases:
        before = costs[-1].phase if costs else None
        work = pass_work(config, plan, phase, machine)
        memory = footprint(config, phase, before, work, machine, layout)
        time = phase_work(config, plan, phase, before, work, memory, machine, layout, had)
        costs.append(PhaseCost(phase, memory, time, memory.peak <= machine.memory))
        had = max(had, memory.peak)
    return Forecast(costs, machine, layout)


def check_fits(config: RunConfig, vocab_size: int, table: Forecast) -> None:
    """Refuse a plan that does not fit.

    Raises:
        DoesNotFitError: With the changes that would.
    """
    if table.refused:
        raise DoesNotFitError(table, changes_that_fit(config, vocab_size, table))


@dataclass(frozen=True)
class Change:
    """A change to a run, and the overrides that make it."""

    overrides: tuple[str, ...]
    apply: Callable[[RunConfig], RunConfig]

    @property
    def settings(self) -> set[str]:
        """The keys that it sets."""
        return {override.partition("=")[0] for override in self.overrides}

    def __add__(self, other: Change) -> Change:
        """Both."""
        return Change(
            self.overrides + other.overrides, lambda config: other.apply(self.apply(config))
        )


def less_memory(config: RunConfig, vocab_size: int, table: Forecast, phase: PlannedPhase) -> str:
    """What the planner offers where a phase ran out of memory against its forecast, in words.

    Args:
        config: The run.
        vocab_size: Of the tokenizer.
        table: Its forecast.
        phase: The phase.
    """
    peak = table.costs[phase.index].footprint.peak
    machine = replace(table.machine, memory=round(0.9 * min(peak, table.machine.memory)))
    tighter = forecast(config, make_plan(config, vocab_size), machine)
    offers = [" ".join(c.overrides) for c in changes_that_fit(config, vocab_size, tighter)]
    if not offers:
        return "No change that the planner knows needs less"
    return f"A new run with one of these needs less: {'; or '.join(offers)}"


def changes_that_fit(config: RunConfig, vocab_size: int, table: Forecast) -> list[Change]:
    """The cheapest changes under which every phase fits, each tried; at most `OFFERS`, single ones before pairs.

    Args:
        config: The run.
        vocab_size: Of the tokenizer.
        table: Its forecast, with phases that do not fit.
    """
    single = list(_changes(config, [cost.phase for cost in table.refused], table.machine))
    found: list[Change] = []
    for change in chain(single, (a + b for a, b in combinations(single, 2))):
        if any(known.settings <= change.settings for known in found):
            continue  # more of what is enough already
        if _fits(change.apply(config), vocab_size, table.machine):
            found.append(change)
        if len(found) == OFFERS:
            break
    return found


def _fits(config: RunConfig, vocab_size: int, machine: Machine) -> bool:
    try:
        check_config(config)
        plan = make_plan(config, vocab_size)
    except UserError:
        return False
    if config.trainer.precision != "auto":
        machine = replace(machine, precision=config.trainer.precision)
    layout = layout_of(config.trainer, machine)
    if any(least_bytes(config, phase, layout) > machine.memory for phase in plan.phases):
        return False
    machine = replace(machine, memory=round(MARGIN * machine.memory))
    return not forecast(config, plan, machine).refused


def _changes(config: RunConfig, phases: list[PlannedPhase], machine: Machine) -> Iterator[Change]:
    """Single changes, those first that change the run least: only its time, then its numbers, then its models."""
    if config.trainer.keep_freed_memory and machine.accelerator == "cpu":
        yield _trainer_change("keep_freed_memory", False)
    devices = config.trainer.devices or 1
    if devices > 1 and config.trainer.strategy != "fsdp":
        yield _trainer_change("strategy", "fsdp")
    if not config.trainer.activation_checkpointing:
        yield _trainer_change("activation_checkpointing", True)
    smaller = [_smaller_batch(p, devices) for p in phases if p.settings.batch_size > devices]
    if smaller:
        yield _all_of(smaller)
    if config.trainer.precision == "64-true":
        yield _trainer_change("precision", "32-true")
    if not machine.half_precision and config.trainer.precision != "auto":
        yield _trainer_change("precision", "bf16-mixed")
    for name in (adamw_8bit.NAME, "muon", "adafactor"):
        if name == adamw_8bit.NAME and adamw_8bit.why_unavailable(machine.accelerator):
            continue
        if name != config.optimizer.name:
            yield _other_optimizer(name)
    yield from _less_growth(config)


def _trainer_change(setting: str, value: bool | str) -> Change:
    return Change(
        (f"trainer.{setting}={str(value).lower()}",),
        lambda config: replace(
            config,
            trainer=replace(config.trainer, **{setting: value}),  # type: ignore[arg-type]
        ),
    )


def _all_of(changes: list[Change]) -> Change:
    whole = changes[0]
    for change in changes[1:]:
        whole = whole + change
    return whole


def _smaller_batch(phase: PlannedPhase, devices: int) -> Change:
    """One sequence a pass on each device, as many passes more: the same steps, slower."""
    accumulate = phase.settings.accumulate * phase.settings.batch_size // devices
    path = f"phases.{phase.name}"
    return Change(
        (f"{path}.batch_size={devices}", f"{path}.accumulate={accumulate}"),
        lambda config: _with_phase(
            config, phase.name, lambda p: replace(p, batch_size=devices, accumulate=accumulate)
        ),
    )


def _other_optimizer(name: str) -> Change:
    file = OmegaConf.load(config_folder() / "optimizer" / f"{name}.yaml")
    settings = OptimizerConfig(**OmegaConf.to_container(file))  # type: ignore[arg-type]
    return Change((f"optimizer={name}",), lambda config: replace(config, optimizer=settings))


def _less_growth(config: RunConfig) -> Iterator[Change]:
    """Fewer extra layers, then smaller scale factors, the largest first."""
    for name, phase in config.phases.items():
        for place, spec in enumerate(phase.grow):
            path = f"phases.{name}.grow.{place}"
            if spec.deepen is not None:
                for layers in range(spec.deepen.extra_layers - 1, 0, -1):
                    yield _grow_change(
                        f"{path}.deepen", name, place, "deepen", "extra_layers", layers
                    )
    for name, phase in config.phases.items():
        for place, spec in enumerate(phase.grow):
            path = f"phases.{name}.grow.{place}"
            if spec.widen is not None and spec.widen.scale_factor is not None:
                for eighths in range(round(spec.widen.scale_factor * 8) - 1, 8, -1):
                    factor = eighths / 8
                    yield _grow_change(
                        f"{path}.widen", name, place, "widen", "scale_factor", factor
                    )


def _grow_change(
    path: str, phase: str, place: int, operator: str, setting: str, value: float
) -> Change:
    def change(settings: PhaseConfig) -> PhaseConfig:
        grow = list(settings.grow)
        changed = replace(getattr(grow[place], operator), **{setting: value})
        grow[place] = replace(grow[place], **{operator: changed})
        return replace(settings, grow=grow)

    override = f"{path}.{setting}={value:g}"
    return Change((override,), lambda config: _with_phase(config, phase, change))


def _with_phase(
    config: RunConfig, name: str, change: Callable[[PhaseConfig], PhaseConfig]
) -> RunConfig:
    return replace(config, phases=config.phases | {name: change(config.phases[name])})
