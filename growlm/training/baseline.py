"""Runs to compare a plan with, made from the plan itself: the same price, one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.schema import RunConfig, StartingModel
from growlm.data import load_tokenizer
from growlm.planner.calibration import calibration
from growlm.planner.forecast import forecast
from growlm.runtime.hardware import find_machine
from growlm.training.resume.resume_from import AUTO, saved_config


def with_baseline(config: RunConfig, tell: Callable[[], None]) -> RunConfig:
    """The run that `baseline` asks for: one phase, of the plan's last model or its first.

    Its learning rate, batch and warm-up are that phase's; the schedule runs over the whole. Its length is the
    plan's in FLOPs, tokens or seconds, to the nearest step.

    Args:
        config: With a plan, checked; returned as it is where no baseline is asked for, or it is one already.
        tell: Called before the machine's speed is measured.

    Raises:
        UserError: If something asked for is wrong.
    """
    kind = config.baseline.kind
    if kind == "none" or config.baseline.of is not None:
        return config
    plan = make_plan(
        config, load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
    )
    phase = plan.phases[-1 if kind == "scratch" else 0]
    path = None if kind == "scratch" else config.model.path
    settings = replace(
        phase.settings,
        steps=_steps_begun_with(config)
        or max(1, round(_price_in_steps(config, plan, phase, tell))),
        tokens=None,
        flops=None,
        grow=[],
        optimizer_state="carry",
        save_initial_as=None,
    )
    return replace(
        config,
        name=f"{config.name}_{kind}",
        model=StartingModel(**asdict(phase.model), path=path),
        phases={phase.name: settings},
        baseline=replace(config.baseline, of=config.name),
    )


def _steps_begun_with(config: RunConfig) -> int | None:
    """Of a run that goes on: seconds are measured ones, and another machine's are others."""
    if config.baseline.equal != "seconds" or config.resume in (None, AUTO):
        return None
    saved = saved_config(Path(config.resume))
    if saved.baseline != replace(config.baseline, of=config.name):
        return None
    (phase,) = saved.phases.values()
    return phase.steps


def _price_in_steps(
    config: RunConfig, plan: Plan, phase: PlannedPhase, tell: Callable[[], None]
) -> float:
    """What the whole plan costs, in steps of one of its phases."""
    if config.baseline.equal == "flops":
        return sum(p.steps * p.flops_per_step for p in plan.phases) / phase.flops_per_step
    if config.baseline.equal == "tokens":
        return sum(p.steps * p.tokens_per_step for p in plan.phases) / phase.tokens_per_step
    # Both sides as the planner has them: where a machine is slower than it thinks, it is so for both.
    machine = find_machine(config.trainer)
    speed = calibration(machine, tell)
    seconds = [cost.work.seconds(speed) for cost in forecast(config, plan, machine).costs]
    price = sum(s["training"] + s["growth"] for s in seconds)
    return price / seconds[phase.index]["step"]
