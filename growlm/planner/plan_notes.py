"""Describe settings of a plan that can be used together, and are probably not meant so."""

from __future__ import annotations

from growlm.config.phase_plan import Plan
from growlm.config.schema import RunConfig
from growlm.runtime.number_format import format_learning_rate, format_ratio


def describe_doubtful_settings(config: RunConfig, plan: Plan) -> list[str]:
    """Return a line for each setting that a run uses, with a consequence that few would want.

    Args:
        config: Config of the run.
        plan: Plan made from the config.
    """
    return [f"warning: {text}" for text in (*_long_warmups(config, plan), *_odd_shape(config))]


def _long_warmups(config: RunConfig, plan: Plan) -> list[str]:
    """Describe warm-ups that end after what they warm up: a shortened plan keeps the warm-up of the full one."""
    notes = []
    length = config.schedule.warmup_steps
    if length > plan.num_steps > 0:
        reached = plan.num_steps / length
        notes.append(
            f"schedule.warmup_steps={length:,} exceeds the plan's {plan.num_steps:,} steps; "
            f"its rates reach {format_ratio(reached)} of each lr"
        )
    for phase in plan.phases:
        length = phase.settings.warmup_steps
        if length > phase.num_steps > 0:
            reached = phase.num_steps / length
            notes.append(
                f"phases.{phase.name}.warmup_steps={length:,} exceeds its {phase.num_steps:,} steps; "
                f"the rate reaches {format_ratio(reached)} of lr={format_learning_rate(phase.settings.lr)}"
            )
    return notes


def _odd_shape(config: RunConfig) -> list[str]:
    """Describe attention that is wider or narrower than a new model, as where only one size was changed."""
    model = config.model
    channels = model.n_heads * model.head_dim
    if model.path is not None or channels == model.d_model:
        return []
    fitting = model.d_model // model.n_heads
    advice = ""
    if fitting * model.n_heads == model.d_model and fitting % 2 == 0:
        advice = f"; model.head_dim={fitting} would make them equal"
    rest = f"model.d_ff={model.d_ff:,} is {format_ratio(model.d_ff / model.d_model)} times d_model"
    if model.n_kv_heads != model.n_heads:
        rest = f"{rest}, and model.n_kv_heads={model.n_kv_heads}"
    return [
        f"model.n_heads={model.n_heads} heads of model.head_dim={model.head_dim} are {channels:,} channels, in a "
        f"model of d_model={model.d_model:,}{advice} ({rest})"
    ]
