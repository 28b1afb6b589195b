"""The learning-rate factor at each step of a plan."""

from __future__ import annotations

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import OWN, ScheduleConfig
from growlm.optim.own_schedule import compute_own_factor
from growlm.optim.schedule_formulas import (
    PhasePosition,
    ScheduleNumbers,
    compute_shipped_factor,
)


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
    numbers = ScheduleNumbers(
        schedule.warmup_steps, schedule.decay_fraction, schedule.final_fraction
    )
    position = PhasePosition(
        phase.first_step, phase.num_steps, plan.num_steps, phase.settings.warmup_steps
    )
    factor = compute_shipped_factor(schedule.name, numbers, position, phase_step)
    if schedule.name != OWN:
        return factor
    return factor * compute_own_factor(schedule, phase.first_step + phase_step, plan.num_steps)
