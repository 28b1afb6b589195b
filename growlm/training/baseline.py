"""Derive the baseline run of a plan: one model, trained without growth at the same total cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from growlm.config.composing.resumed_config import AUTO, load_saved_config
from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.run_tokenizer import load_run_tokenizer
from growlm.config.schema import InitialModelConfig, RunConfig
from growlm.planner.calibration import load_or_measure_calibration
from growlm.planner.forecast import forecast_plan
from growlm.runtime.hardware import detect_machine


def apply_baseline(config: RunConfig, on_measure: Callable[[], None]) -> RunConfig:
    """Return the config of the run that `baseline` requests: one phase with the plan's last or first model.

    Learning rate, batch and warm-up are those of that model's phase; the schedule covers the whole run. Its length
    equals the plan's in FLOPs, tokens or seconds, to the nearest step.

    Args:
        config: Checked config with a plan; returned unchanged if it requests no baseline or is one already.
        on_measure: Called before the machine's speed is measured.

    Raises:
        UserError: If a setting is invalid.
    """
    kind = config.baseline.kind
    if kind == "none" or config.baseline.of is not None:
        return config
    plan = make_plan(config, load_run_tokenizer(config).vocab_size)
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
        model=InitialModelConfig(**vars(phase.model_config), path=path),
        phases={phase.name: settings},
        baseline=replace(config.baseline, of=config.name),
    )


def _saved_baseline_steps(config: RunConfig) -> int | None:
    """Return the length of a resumed baseline, since measured seconds differ between machines."""
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
    """Return the cost of the whole plan, in steps of `phase`."""
    if config.baseline.equal == "flops":
        return sum(p.num_steps * p.flops_per_step for p in plan.phases) / phase.flops_per_step
    if config.baseline.equal == "tokens":
        return sum(p.num_steps * p.tokens_per_step for p in plan.phases) / phase.tokens_per_step
    # Both costs are planner estimates, so an error in the machine's speed cancels.
    machine = detect_machine(config.trainer)
    calibration = load_or_measure_calibration(machine, on_measure)
    seconds = [
        cost.workload.estimate_seconds(calibration)
        for cost in forecast_plan(config, plan, machine).phase_forecasts
    ]
    total = sum(s["training"] + s["growth"] for s in seconds)
    return total / seconds[phase.index]["step"]
