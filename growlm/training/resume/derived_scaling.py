"""Derive the step scaling of a phase from the plan, for a run that is resumed."""

from __future__ import annotations

from growlm.config.phase_plan import Plan
from growlm.config.schema import OptimizerConfig
from growlm.growth.grow_model import build_growth_map
from growlm.growth.step_scaling import StepScaling, make_step_scaling


def derive_step_scaling(plan: Plan, index: int, settings: OptimizerConfig) -> StepScaling:
    """Derive the step scaling at the start of a phase from the plan alone."""
    phase = plan.phases[index]
    mode = phase.settings.optimizer_state
    if index == 0 or mode not in ("exact", "asymmetric"):
        return StepScaling()
    growth_map = build_growth_map(plan.phases[index - 1].model_config, phase.operators)
    earlier = derive_step_scaling(plan, index - 1, settings).carried_factors
    return make_step_scaling(
        mode, growth_map, earlier, settings.rewarm_peak, settings.rewarm_steps, get_betas(settings)
    )


def get_betas(settings: OptimizerConfig) -> tuple[float, float] | None:
    """Return Adam's betas; None for an optimizer without them."""
    if settings.beta1 is None or settings.beta2 is None:
        return None
    return settings.beta1, settings.beta2
