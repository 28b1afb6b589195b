"""Make the optimizers of a grown model from those of the old one, for a training loop of one's own.

`optimizer_state.py` says what happens to their state, `step_scaling.py` to their steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from growlm.growth.eight_bit_moments import scale_key
from growlm.growth.growth_map import GrowthMap
from growlm.growth.optimizer_state import (
    FACTORED_ENTRIES,
    MOMENT_OF_SCALE_KEY,
    MOMENT_POWERS,
    ParameterState,
    grow_optimizer_state,
)
from growlm.growth.step_scaling import ExactScaling
from growlm.model.axes import Role, axes_table
from growlm.runtime.errors import UserError

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)

LOOP_MODES = ("carry", "reset", "exact")
"""The modes that need no schedule of a plan."""

_SCALINGS: WeakKeyDictionary[Optimizer, ExactScaling] = WeakKeyDictionary()
"""The scaling of each optimizer that `grow_optimizers` made with `exact`."""


@dataclass(frozen=True)
class Place:
    """The place of a parameter: number of the optimizer, number of its group, and position in that group."""

    optimizer: int
    group: int
    position: float


def check_optimizers(optimizers: Sequence[Optimizer], model: nn.Module, mode: str) -> None:
    """Check that optimizers can grow with a model, before the model does.

    Args:
        optimizers: Optimizers of the model.
        model: Model before the growth.
        mode: One of `LOOP_MODES`.

    Raises:
        UserError: If they cannot.
    """
    if mode not in LOOP_MODES:
        raise UserError("optimizer_state", mode, f"must be one of {', '.join(LOOP_MODES)}")
    find_places(optimizers, model)
    for optimizer in optimizers:
        if mode == "exact":
            check_scalable(optimizer)
        if mode != "reset":
            get_states(optimizer, model)
        if not hasattr(optimizer, "with_groups"):
            _copyable_attributes(optimizer)


def grow_optimizers(
    optimizers: Sequence[OptimizerT],
    old_model: nn.Module,
    new_model: nn.Module,
    growth_map: GrowthMap,
    mode: str = "carry",
) -> list[OptimizerT]:
    """Return optimizers of the same classes for the grown model; the old ones are left as they are.

    Each parameter is in the group of the one that it was made from, and a new one (a router) in that of its
    neighbors in the block. Settings of the groups stay, and learning rates that a schedule has changed are what
    they were before it. Hooks of the old optimizers are not taken over.

    Args:
        optimizers: Optimizers of the old model, which `check_optimizers` has accepted.
        old_model: Model before the growth.
        new_model: Model after the growth.
        growth_map: Map of the growth.
        mode: One of `LOOP_MODES`. With `exact`, hooks of the new optimizers scale gradients and updates, so `step`
            takes no closure.

    Raises:
        UserError: If there is no rule for growing a state, or a class cannot step a grown parameter.
    """
    parameters = dict(new_model.named_parameters())
    places = assign_places(new_model, growth_map, find_places(optimizers, old_model))
    grown = []
    for number, optimizer in enumerate(optimizers):
        members = [n for n in parameters if n in places and places[n].optimizer == number]
        new = copy_for_parameters(optimizer, members, parameters, places)
        states = _grow_states(optimizer, old_model, growth_map, mode)
        states = {name: states[name] for name in members if name in states}
        if mode == "exact":
            earlier = _SCALINGS.get(optimizer)
            factors = growth_map.scale_factors({} if earlier is None else earlier.carried_factors)
            scaling = ExactScaling({name: factors[name] for name in members}, scales_rates=False)
            scaling.scale_state(states)
            _scale_steps(new, new_model, scaling)
        convert = getattr(new, "convert_state", dict)
        for name, state in states.items():
            new.state[parameters[name]] = convert(state)
        grown.append(new)
    return grown


def _grow_states(
    optimizer: Optimizer, model: nn.Module, growth_map: GrowthMap, mode: str
) -> dict[str, ParameterState]:
    if mode == "reset":
        return {}
    states = get_states(optimizer, model)
    earlier = _SCALINGS.get(optimizer)
    if earlier is not None:
        states = _unscaled(states, earlier)
    try:
        with torch.no_grad():
            return grow_optimizer_state(growth_map, states, mode)
    except ValueError as error:
        _refuse(optimizer, f"{error}; set optimizer_state=reset, or see register_moment", error)


def check_scalable(optimizer: Optimizer, mode: str = "exact") -> None:
    """Check that the optimizer's update of an entry depends on that entry alone, in a way that can be scaled.

    Raises:
        UserError: If it does not.
    """
    kind, groups = type(optimizer), optimizer.param_groups
    if kind not in (AdamW, SGD) and not (
        kind is Adam and not any(group["weight_decay"] for group in groups)
    ):
        _refuse_scaling(kind.__name__, mode)
    if any(group["maximize"] for group in groups):
        raise UserError("optimizer_state", mode, "is for optimizers that minimize; use carry")


def check_scalable_names(names: Collection[str], mode: str) -> None:
    """Check classes of optimizers, by name, as `check_scalable` checks an optimizer.

    Raises:
        UserError: For the first that cannot be scaled.
    """
    for name in names:
        if name not in (AdamW.__name__, SGD.__name__, Adam.__name__):
            _refuse_scaling(name, mode)


def _refuse_scaling(name: str, mode: str) -> NoReturn:
    reason = "is for torch's AdamW, SGD, and Adam without weight decay, not for"
    raise UserError("optimizer_state", mode, f"{reason} {name}; use carry or reset")


def find_places(optimizers: Sequence[Optimizer], model: nn.Module) -> dict[str, Place]:
    """Return the place of each parameter that is stepped.

    Raises:
        UserError: If an optimizer steps a tensor that is not a parameter of the model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Place] = {}
    for number, optimizer in enumerate(optimizers):
        if not hasattr(optimizer, "param_groups"):
            _refuse(optimizer, "is no optimizer; give grow() a torch.optim.Optimizer")
        for group, options in enumerate(optimizer.param_groups):
            for position, parameter in enumerate(options["params"]):
                if parameter not in names:
                    _refuse(optimizer, "steps a tensor that is not a parameter of the model")
                found[names[parameter]] = Place(number, group, position)
    return found


def get_states(optimizer: Optimizer, model: nn.Module) -> dict[str, ParameterState]:
    """Return the optimizer's own states, by parameter name, and check that they can grow.

    Raises:
        UserError: If there is no rule for growing an entry of a state.
    """
    states = {
        name: {e: v for e, v in optimizer.state[parameter].items() if v is not None}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }
    check_growable_states(states, model, dict.fromkeys(states, type(optimizer).__name__))
    return states


def check_growable_states(
    states: Mapping[str, ParameterState], model: nn.Module, optimizer_names: Mapping[str, str]
) -> None:
    """Check that there is a rule for growing every entry of the optimizers' state.

    Args:
        states: States by parameter name.
        model: Model whose parameters they belong to.
        optimizer_names: Class of the optimizer of each parameter, for messages.

    Raises:
        UserError: For the first entry that cannot grow.
    """
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        if problem := _find_state_problem(name, state, parameters[name]):
            reason = f"{problem}; set optimizer_state=reset"
            raise UserError("optimizer", optimizer_names.get(name, "optimizer"), reason)


def _find_state_problem(name: str, state: ParameterState, parameter: Tensor) -> str | None:
    if {"square_avg", "momentum_buffer"} <= state.keys():  # RMSprop's
        return "its momentum is a mean of normalized gradients"
    for entry, value in state.items():
        if entry in MOMENT_POWERS:
            is_shaped = scale_key(entry) in state or value.shape == parameter.shape
            if entry != "variance" and not is_shaped:
                return f"its state {entry!r} of {name} does not have the parameter's shape"
        elif entry not in ("step", *FACTORED_ENTRIES, *MOMENT_OF_SCALE_KEY):
            shown = entry.rpartition(":")[2]  # those that growlm does not know have a prefix
            return f"no rule for its state {shown!r} of {name}; see register_moment"
    return None


def _unscaled(
    states: Mapping[str, ParameterState], scaling: ExactScaling
) -> dict[str, ParameterState]:
    """Return copies of the states of an optimizer whose steps are scaled, as plain moments."""
    copies = {
        name: {e: v.clone() if isinstance(v, Tensor) else v for e, v in state.items()}
        for name, state in states.items()
    }
    scaling.unscale_state(copies)
    return copies


def assign_places(
    model: nn.Module, growth_map: GrowthMap, places: Mapping[str, Place]
) -> dict[str, Place]:
    """Return the place of each parameter that is stepped: its source's, or behind its neighbors'."""
    sources = {name: growth_map.tensors[name].source for name, _ in model.named_parameters()}
    assigned = {n: places[s] for n, s in sources.items() if s is not None and s in places}
    table = axes_table(model)
    for name in [name for name, source in sources.items() if source is None]:
        near = [other for other in assigned if table[other].block == table[name].block]
        reads = table[name].label.has(Role.READS)
        alike = [other for other in near if table[other].label.has(Role.READS) is reads]
        if neighbors := alike or near or list(assigned):
            neighbor = assigned[neighbors[0]]
            assigned[name] = Place(neighbor.optimizer, neighbor.group, float("inf"))
    return assigned


def copy_for_parameters(
    optimizer: OptimizerT,
    members: Sequence[str],
    parameters: Mapping[str, nn.Parameter],
    places: Mapping[str, Place],
) -> OptimizerT:
    """Return an optimizer of the same class and settings for other parameters, without state.

    Args:
        optimizer: Optimizer that is left as it is.
        members: Names of its parameters.
        parameters: Parameters by name.
        places: Their places, by name.
    """
    return _copy_with_groups(optimizer, _build_groups(optimizer, members, parameters, places))


def _build_groups(
    optimizer: Optimizer,
    members: Sequence[str],
    parameters: Mapping[str, nn.Parameter],
    places: Mapping[str, Place],
) -> list[dict[str, Any]]:
    """Return the groups of the new optimizer, in the order of the old ones."""
    groups = []
    for index, old in enumerate(optimizer.param_groups):
        group = {key: value for key, value in old.items() if key != "initial_lr"}
        # A schedule's; a new one must not begin where the old one ended.
        group["lr"] = old.get("initial_lr", old["lr"])
        names = sorted(
            (name for name in members if places[name].group == index),
            key=lambda name: places[name].position,
        )
        group["params"] = [parameters[name] for name in names]
        if "param_names" in group:
            group["param_names"] = names
        stacks = [name for name in names if parameters[name].ndim != 2]
        if isinstance(optimizer, Muon) and stacks:
            reason = (
                f"steps matrices only, and {stacks[0]} is none; use growlm.optim.muon.MuonAdamW"
            )
            _refuse(optimizer, reason)
        groups.append(group)
    return groups


def _copy_with_groups(optimizer: OptimizerT, groups: list[dict[str, Any]]) -> OptimizerT:
    """Return an optimizer of the same class and settings with other groups, and no state and no hooks.

    A class whose objects hold parameters or optimizers outside their groups must have a method
    `with_groups(groups)` that returns such a copy. If it needs states in a form of its own, a method
    `convert_state(state)` returns them.
    """
    if hasattr(optimizer, "with_groups"):
        made: OptimizerT = optimizer.with_groups(groups)
        return made
    copy = type(optimizer).__new__(type(optimizer))
    for key, value in _copyable_attributes(optimizer).items():
        is_hooks = "hooks" in key and isinstance(value, dict)
        setattr(copy, key, type(value)() if is_hooks else value)
    copy.param_groups = groups
    copy.state = defaultdict(dict)
    return copy


def _copyable_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """Return the attributes that a copy for other parameters has, too."""
    found = {}
    for key, value in vars(optimizer).items():
        # Schedules replace methods by some that know the old optimizer, and leave marks.
        if key in ("param_groups", "state", "_opt_called") or callable(
            getattr(type(optimizer), key, None)
        ):
            continue
        if _holds_parameters(value):
            reason = f"holds parameters in {key}, which cannot be replaced"
            _refuse(optimizer, f"{reason}; give its class a method with_groups")
        found[key] = value
    return found


def _holds_parameters(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_parameters, (*value, *value.values())))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_parameters, value))
    return isinstance(value, nn.Parameter | Optimizer | nn.Module)


def _scale_steps(optimizer: Optimizer, model: nn.Module, scaling: ExactScaling) -> None:
    """Let hooks of the optimizer scale its steps, and keep its scaled state from being taken for a plain one."""
    find_model = ref(model)  # the optimizer must not keep the model alive

    def before(self: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())  # torch passes the optimizer itself, too
        if any(value is not None and value is not self for value in given):
            raise UserError("optimizer_state", "exact", "works with step(), not with a closure")
        if getattr(self, "grad_scale", None) is not None:
            reason = "does not work with a GradScaler that unscales in the step; use bf16 or fp32"
            raise UserError("optimizer_state", "exact", reason)
        trained = find_model()
        if trained is not None:
            scaling.before_step(trained, self, float("inf"))

    def give_plain_moments(self: Optimizer, content: dict[str, Any]) -> dict[str, Any]:
        trained = find_model()
        if trained is None:
            return content
        names = {id(parameter): name for name, parameter in trained.named_parameters()}
        order = [names[id(p)] for group in self.param_groups for p in group["params"]]
        states = {order[index]: state for index, state in content["state"].items()}
        plain = _unscaled(states, scaling)
        return {**content, "state": {i: plain[order[i]] for i in content["state"]}}

    def refuse_copy(*_: object) -> NoReturn:
        reason = "an optimizer of this mode cannot be copied or pickled; use its state_dict()"
        raise UserError("optimizer_state", "exact", reason)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: scaling.after_step())
    optimizer.register_state_dict_post_hook(give_plain_moments)
    vars(optimizer)["__reduce_ex__"] = refuse_copy
    _SCALINGS[optimizer] = scaling


def _refuse(optimizer: Optimizer, reason: str, cause: Exception | None = None) -> NoReturn:
    raise UserError("optimizer", type(optimizer).__name__, reason) from cause
