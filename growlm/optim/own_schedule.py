"""Use a learning-rate schedule of the user's own: a function of the step, or one of torch's schedulers.

The rate must be a function of the step alone, so that a resumed run and a new phase have the rate that an
uninterrupted run would have:

- a function is called with the step of the run (from 0), the number of steps of the plan and the keys beside
  `_target_`; it returns the factor on the phase's rate;
- an object of a class that is no scheduler is called in the same way; its class gets the keys;
- a `torch.optim.lr_scheduler.LRScheduler` is stepped through the plan on an optimizer with rate 1; its rates are
  the factors.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from growlm.config.instantiate import check_target, instantiate_target, read_arguments, summarize
from growlm.config.own_classes import TARGET
from growlm.config.schema import OWN, ScheduleConfig
from growlm.runtime.errors import UserError

KEY = "schedule"
Schedule = Callable[[int, int], float]


def compute_own_factor(settings: ScheduleConfig, step: int, num_steps: int) -> float:
    """Return the factor on the learning rate.

    Args:
        settings: Settings with the function or class.
        step: Steps of the run before this one.
        num_steps: Steps of the plan.

    Raises:
        UserError: If it cannot be used, or returns anything but a number that is 0 or more.
    """
    schedule = _open_schedule(json.dumps([settings._target_, settings.arguments]), num_steps)
    key = f"{KEY}.{TARGET}"
    try:
        factor = float(schedule(step, num_steps))
    except Exception as error:
        reason = f"cannot be called with step={step}, num_steps={num_steps}: {summarize(error)}"
        raise UserError(key, settings._target_, reason) from error
    if not (math.isfinite(factor) and factor >= 0):
        reason = f"must return a factor of at least 0; it returned {factor} for step {step}"
        raise UserError(key, settings._target_, reason)
    return factor


def check_own_schedule(settings: ScheduleConfig, num_steps: int) -> None:
    """Check the factors of the first and the last step.

    Raises:
        UserError: If one cannot be computed.
    """
    if settings.name == OWN:
        for step in (0, max(0, num_steps - 1)):
            compute_own_factor(settings, step, num_steps)


@lru_cache
def _open_schedule(content: str, num_steps: int) -> Schedule:
    target, arguments = json.loads(content)
    spec = {TARGET: target, **arguments}
    found = check_target(KEY, spec)
    if not isinstance(found, type):
        more, named = read_arguments(KEY, spec)
        return lambda step, num_steps: found(step, num_steps, *more, **named)
    if issubclass(found, ReduceLROnPlateau):
        reason = (
            "follows the loss; a schedule must be a function of the step, so that a run can resume"
        )
        raise UserError(f"{KEY}.{TARGET}", target, reason)
    if not issubclass(found, LRScheduler):
        schedule: Schedule = instantiate_target(KEY, spec)
        return schedule
    factors = _tabulate(spec, num_steps)
    return lambda step, _: factors[min(step, len(factors) - 1)]


def _tabulate(spec: dict[str, Any], num_steps: int) -> list[float]:
    """Return the rates of a torch scheduler on an optimizer with rate 1, at every step of the plan."""
    # It has no momentum: a schedule that changes it too is refused.
    optimizer = torch.optim.Optimizer([nn.Parameter(torch.zeros(()))], {"lr": 1.0})
    with warnings.catch_warnings(action="ignore"):  # that the optimizer does not step
        scheduler: LRScheduler = instantiate_target(KEY, spec, LRScheduler, (optimizer,))
        factors = []
        for _ in range(max(1, num_steps)):
            factors.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step()
    return factors
