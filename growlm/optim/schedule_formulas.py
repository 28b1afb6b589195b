"""The formulas of the shipped learning-rate schedules; imports nothing, since reports draw them without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduleNumbers:
    """Settings of a shipped schedule that are numbers."""

    warmup_steps: int
    decay_fraction: float
    final_fraction: float


@dataclass(frozen=True)
class PhasePosition:
    """Lengths of a phase and of the plan that it belongs to, in steps."""

    first_step: int
    """Steps of the plan before the phase."""
    num_steps: int
    plan_steps: int
    warmup_steps: int
    """Steps of the phase's own warm-up."""


def compute_shipped_factor(
    name: str, numbers: ScheduleNumbers, phase: PhasePosition, phase_step: int
) -> float:
    """Return the factor of `wsd`, `constant` or `cosine` on the phase's learning rate, from 0 to 1.

    Args:
        name: Name of the schedule; of any other schedule, only the warm-ups are returned.
        numbers: Settings of the schedule.
        phase: Where the phase lies in the plan.
        phase_step: Steps that the phase has done.
    """
    step = phase.first_step + phase_step
    warmup = _warmup_factor(step, numbers.warmup_steps) * _warmup_factor(
        phase_step, phase.warmup_steps
    )
    if name == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * phase_step / max(1, phase.num_steps)))
    elif name == "wsd":
        decay_steps = numbers.decay_fraction * phase.plan_steps
        falling = min(1.0, (phase.plan_steps - step) / decay_steps) if decay_steps else 1.0
    else:
        return warmup
    return warmup * (numbers.final_fraction + (1 - numbers.final_fraction) * falling)


def _warmup_factor(step: int, length: int) -> float:
    return min(1.0, (step + 1) / length) if length else 1.0
