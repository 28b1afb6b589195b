"""The learning-rate factor at each step of a plan."""

from __future__ import annotations

import math

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import OWN, ScheduleConfig
from growlm.optim.own_schedule import compute_own_factor


def compute_lr_factor(
    schedule: ScheduleConfig, plan: Plan, phase: PlannedPhase, phase_step: int
) -> float:
    """Return the factor that multiplies the phase's learning rate at one step.

    `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395) spans the whole plan: growth should
    happen on the plateau, and the only decay should come at the end (Bu 2025, arXiv 2511.04981).

    Args:
        schedule: Settings of the schedule.
        plan: Plan with all phases.
        phase: Phase that is training.
        phase_step: Number of steps the phase has done.

    Returns:
        A factor from 0 to 1; of a schedule of the user's own, 0 or more.
    """
    step = phase.first_step + phase_step
    warmup = _warmup_factor(step, schedule.warmup_steps) * _warmup_factor(
        phase_step, phase.settings.warmup_steps
    )
    if schedule.name == "constant":
        return warmup
    if schedule.name == OWN:
        return warmup * compute_own_factor(schedule, step, plan.num_steps)
    if schedule.name == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * phase_step / max(1, phase.num_steps)))
    else:
        decay_steps = schedule.decay_fraction * plan.num_steps
        falling = min(1.0, (plan.num_steps - step) / decay_steps) if decay_steps else 1.0
    return warmup * (schedule.final_fraction + (1 - schedule.final_fraction) * falling)


def _warmup_factor(step: int, length: int) -> float:
    return min(1.0, (step + 1) / length) if length else 1.0
