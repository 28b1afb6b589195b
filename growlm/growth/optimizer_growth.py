"""Make the optimizer of a grown model from that of the old one, for a training loop of one's own.

`optimizer_state.py` says what happens to its state, `step_scaling.py` to its steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from growlm.growth.growth_map import GrowthMap
from growlm.growth.optimizer_state import ParameterState, grow_optimizer_state
from growlm.growth.step_scaling import ExactScaling
from growlm.model.axes import Role, axes_table, split_block_name
from growlm.runtime.errors import UserError

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)

LOOP_MODES = ("carry", "reset", "exact")
"""The modes that need no schedule of a plan."""

_SCALINGS: WeakKeyDictionary[Optimizer, ExactScaling] = WeakKeyDictionary()
"""The scaling of each optimizer that `grow_optimizer` made with `exact`."""


def grow_optimizer(
    optimizer: OptimizerT,
    old_model: nn.Module,
    new_model: nn.Module,
    growth_map: GrowthMap,
    mode: str = "carry",
) -> OptimizerT:
    """Return an optimizer of the same class for the grown model; the old one is left as it is.

    Each parameter is in the group of the one that it was made from, and a new one (a router) in that of its
    neighbors in the block. All settings of the groups stay.

    Args:
        optimizer: Optimizer of the old model.
        old_model: Model before the growth.
        new_model: Model after the growth.
        growth_map: Map of the growth.
        mode: `carry`, `reset` or `exact`. With `exact`, hooks of the new optimizer scale gradients and updates, so
            `step` takes no closure.

    Raises:
        UserError: If the mode is unknown or does not fit the optimizer, it steps tensors of another model, or
            there is no rule for growing its state.
    """
    if mode not in LOOP_MODES:
        raise UserError("optimizer_state", mode, f"must be one of {', '.join(LOOP_MODES)}")
    if mode == "exact":
        _check_scalable(optimizer)
    old_groups = _find_groups(optimizer, old_model)
    states = _get_states(optimizer, old_model)
    earlier = _SCALINGS.get(optimizer)
    if earlier is not None:
        states = {name: _copy_state(state) for name, state in states.items()}
        earlier.unscale_state(states)
    try:
        with torch.no_grad():
            grown_states = grow_optimizer_state(growth_map, states, mode)
    except ValueError as error:
        reason = f"{error}; set optimizer_state=reset, or name its kind with register_moment"
        raise UserError("optimizer", type(optimizer).__name__, reason) from error
    parameters = dict(new_model.named_parameters())
    new_groups = _assign_groups(new_model, growth_map, old_groups)
    groups = [
        {**group, "params": [p for name, p in parameters.items() if new_groups.get(name) == number]}
        for number, group in enumerate(optimizer.param_groups)
    ]
    grown = _copy_with_groups(optimizer, groups)
    for name, state in grown_states.items():
        grown.state[parameters[name]] = state
    if mode == "exact":
        factors = growth_map.scale_factors({} if earlier is None else earlier.carried_factors)
        scaling = ExactScaling(factors, scales_rates=False)
        scaling.scale_state(grown_states)
        _scale_steps(grown, new_model, scaling)
    return grown


def _check_scalable(optimizer: Optimizer) -> None:
    """Check that the optimizer's update of an entry depends on that entry alone, in a way that can be scaled."""
    kind = type(optimizer)
    decays = any(group["weight_decay"] for group in optimizer.param_groups)
    if kind not in (AdamW, SGD) and not (kind is Adam and not decays):
        reason = "is for torch's AdamW, SGD, and Adam without weight decay, not for"
        raise UserError("optimizer_state", "exact", f"{reason} {kind.__name__}; use carry or reset")


def _find_groups(optimizer: Optimizer, model: nn.Module) -> dict[str, int]:
    """Return the number of each parameter's group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, int] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                reason = "steps a tensor that is not a parameter of the model"
                raise UserError("optimizer", type(optimizer).__name__, reason)
            found[names[parameter]] = number
    return found


def _get_states(optimizer: Optimizer, model: nn.Module) -> dict[str, ParameterState]:
    """Return the optimizer's own states, by parameter name."""
    return {
        name: {e: value for e, value in optimizer.state[parameter].items() if value is not None}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def _copy_state(state: ParameterState) -> ParameterState:
    return {e: value.clone() if isinstance(value, Tensor) else value for e, value in state.items()}


def _assign_groups(
    model: nn.Module, growth_map: GrowthMap, groups: Mapping[str, int]
) -> dict[str, int]:
    """Return the group of each parameter that is stepped: its source's, or its neighbors'."""
    sources = {name: growth_map.tensors[name].source for name, _ in model.named_parameters()}
    assigned = {name: groups[s] for name, s in sources.items() if s is not None and s in groups}
    table = axes_table(model)
    for name in [name for name, source in sources.items() if source is None]:
        block, _ = split_block_name(name)
        near = [other for other in assigned if split_block_name(other)[0] == block]
        reads = table[name].label.has(Role.READS)
        alike = [other for other in near if table[other].label.has(Role.READS) is reads]
        if neighbors := alike or near or list(assigned):
            assigned[name] = assigned[neighbors[0]]
    return assigned


def _copy_with_groups(optimizer: OptimizerT, groups: list[dict[str, Any]]) -> OptimizerT:
    """Return an optimizer of the same class and settings with other groups, and no state and no hooks.

    A class whose objects hold parameters or optimizers outside their groups must have a method
    `with_groups(groups)` that returns such a copy.
    """
    if hasattr(optimizer, "with_groups"):
        made: OptimizerT = optimizer.with_groups(groups)
        return made
    copy = type(optimizer).__new__(type(optimizer))
    set_by_schedules = {"step", "_opt_called"}
    for key, value in vars(optimizer).items():
        if key in set_by_schedules or key in ("param_groups", "state"):
            continue
        if _holds_parameters(value):
            reason = f"holds parameters in {key}, which cannot be replaced; give its class a method with_groups"
            raise UserError("optimizer", type(optimizer).__name__, reason)
        is_hooks = "hooks" in key and isinstance(value, dict)
        setattr(copy, key, type(value)() if is_hooks else value)
    copy.param_groups = groups
    copy.state = defaultdict(dict)
    return copy


def _holds_parameters(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_parameters, (*value, *value.values())))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_parameters, value))
    return isinstance(value, nn.Parameter | Optimizer | nn.Module)


def _scale_steps(optimizer: Optimizer, model: nn.Module, scaling: ExactScaling) -> None:
    """Let hooks of the optimizer scale its steps."""

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())  # torch passes the optimizer itself, too
        if any(value is not None and value is not optimizer for value in given):
            reason = "step takes no closure: gradients are scaled before it"
            raise UserError("optimizer_state", "exact", reason)
        scaling.before_step(model, optimizer, float("inf"))

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: scaling.after_step())
    _SCALINGS[optimizer] = scaling
