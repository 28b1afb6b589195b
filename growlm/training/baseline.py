"""Runs to compare a plan with, made from the plan itself: the same price, one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.schema import InitialModelConfig, RunConfig
from growlm.data import load_tokenizer
from growlm.planner.calibration import load_or_measure_calibration
from growlm.planner.forecast import forecast_plan
from growlm.runtime.hardware import detect_machine
from growlm.training.resume.resume_from import AUTO, load_saved_config


def apply_baseline(config: RunConfig, on_measure: Callable[[], None]) -> RunConfig:
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
        steps=_saved_baseline_steps(config)
        or max(1, round(_steps_at_equal_cost(config, plan, phase, on_measure))),
        tokens=None,
        flops=None,
        grow=[],
        optimizer_state="carry",
        save_initial_as=None,
    )
    return replace(
        config,
        name=f"{config.name}_{kind}",
        model=InitialModelConfig(**asdict(phase.model_config), path=path),
        phases={phase.name: settings},
        baseline=replace(config.baseline, of=config.name),
    )


def _saved_baseline_steps(config: RunConfig) -> int | None:
    """Of a run that goes on: seconds are measured ones, and another machine's are others."""
    if config.baseline.equal != "seconds" or config.resume in (None, AUTO):
        return None
    saved = load_saved_config(Path(config.resume))
    if saved.baseline != replace(config.baseline, of=config.name):
        return None
    (phase,) = saved.phases.values()
    return phase.steps


def _steps_at_equal_cost(
    config: RunConfig, plan: Plan, phase: PlannedPhase, on_measure: Callable[[], None]
) -> float:
    """What the whole plan costs, in steps of one of its phases."""
    if config.baseline.equal == "flops":
        return sum(p.num_steps * p.flops_per_step for p in plan.phases) / phase.flops_per_step
    if config.baseline.equal == "tokens":
        return sum(p.num_steps * p.tokens_per_step for p in plan.phases) / phase.tokens_per_step
    # Both sides as the planner has them: where a machine is slower than it thinks, it is so for both.
    machine = detect_machine(config.trainer)
    speed = load_or_measure_calibration(machine, on_measure)
    seconds = [
        cost.workload.estimate_seconds(speed)
        for cost in forecast_plan(config, plan, machine).phase_forecasts
    ]
    price = sum(s["training"] + s["growth"] for s in seconds)
    return price / seconds[phase.index]["step"]
