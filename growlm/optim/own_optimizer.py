"""Use an optimizer of the user's own: any `torch.optim.Optimizer` that `optimizer._target_` names.

It is called with growlm's parameter groups, each with its `lr` and `weight_decay`, with `lr` if it has such an
argument, and with the keys beside `_target_`. What it keeps for a parameter is found out by one step on small
tensors: its size, and whether growlm knows how it grows.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growlm.checkpoint.optimizer_files import OWN_NUMBERS, OWN_TENSOR, is_own_entry
from growlm.config.instantiate import check_kind, find_object, instantiate_target, summarize
from growlm.config.own_classes import TARGET
from growlm.config.phase_plan import Plan
from growlm.config.schema import OWN, OptimizerConfig
from growlm.growth.optimizer_state import MOMENT_POWERS, ParameterState
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_ratio

KEY = "optimizer"
STEP = "step"
PYTHON_STEP_DTYPE = torch.int32
"""Type under which a step count is written that the optimizer keeps as a number of Python."""
PROBE_SHAPES = ((8, 6), (8,), (2, 8, 6))
"""Shapes of a matrix, a vector and a stack of experts."""
PROBE_LR = 1e-3


@dataclass(frozen=True)
class OptimizerProbe:
    """What an optimizer of the user's own keeps, after one step on small parameters."""

    bytes_per_weight_byte: float
    """Bytes of state for each byte of a parameter."""
    entries: frozenset[str]
    """Entries as they are saved."""
    unknown_entries: tuple[str, ...]
    """Entries that growlm has no rule to grow by."""


def build_own_optimizer(
    groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig
) -> Optimizer:
    """Build the optimizer.

    Args:
        groups: Parameter groups with `params`, `lr` and `weight_decay`.
        lr: Learning rate.
        settings: Settings with the class.

    Raises:
        UserError: If the class cannot be used.
    """
    assert settings._target_ is not None
    for name in ("params", "lr"):
        if name in settings.arguments:
            reason = "is set by growlm: phases.NAME.lr" if name == "lr" else "is set by growlm"
            raise UserError(f"{KEY}.{name}", settings.arguments[name], reason)
    found = find_object(f"{KEY}.{TARGET}", settings._target_)
    check_kind(KEY, settings._target_, found, Optimizer)
    given = {"lr": lr} if _takes(found, "lr") else {}
    if settings.weight_decay and not _takes(found, "weight_decay"):
        reason = f"{settings._target_} has no such argument; set it to 0"
        raise UserError(f"{KEY}.weight_decay", settings.weight_decay, reason)
    spec = {TARGET: settings._target_, **settings.arguments}
    optimizer: Optimizer = instantiate_target(KEY, spec, Optimizer, (groups,), **given)
    return optimizer


def probe_optimizer(settings: OptimizerConfig) -> OptimizerProbe:
    """Return what the optimizer keeps for a parameter; the random state of this process is left as it is.

    Raises:
        UserError: If the class cannot be used, cannot step, or keeps what growlm cannot save.
    """
    return _probe(json.dumps([settings._target_, settings.weight_decay, settings.arguments]))


@lru_cache
def _probe(content: str) -> OptimizerProbe:
    target, weight_decay, arguments = json.loads(content)
    settings = OptimizerConfig(
        name=OWN, _target_=target, weight_decay=weight_decay, arguments=arguments
    )
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in PROBE_SHAPES]
    groups = [
        {"params": members, "lr": PROBE_LR, "weight_decay": decay}
        for members, decay in ((parameters[:1], weight_decay), (parameters[1:], 0.0))
    ]

    def closure() -> Any:
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return torch.zeros(())

    with torch.random.fork_rng(devices=()):
        optimizer = build_own_optimizer(groups, PROBE_LR, settings)
        try:
            optimizer.step(closure)
        except Exception as error:
            reason = f"cannot step: {summarize(error)}"
            raise UserError(f"{KEY}.{TARGET}", target, reason) from error
    states = [encode_state(p, optimizer.state.get(p, {})) for p in parameters]
    tensors = [value for state in states for value in state.values() if value.numel() > 1]
    state_bytes, weight_bytes = (
        sum(tensor.numel() * tensor.element_size() for tensor in each)
        for each in (tensors, parameters)
    )
    entries = dict.fromkeys(entry for state in states for entry in state)
    unknown = tuple(entry.partition(":")[2] for entry in entries if is_own_entry(entry))
    return OptimizerProbe(state_bytes / weight_bytes, frozenset(entries), unknown)


def _takes(found: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return True
    has_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return has_any or name in parameters


def reset_unknown_states(plan: Plan, settings: OptimizerConfig) -> tuple[Plan, list[str]]:
    """Return the plan, with `optimizer_state: reset` where growlm does not know how the state grows, and notes.

    Raises:
        UserError: If the optimizer's class cannot be used.
    """
    if settings.name != OWN:
        return plan, []
    probe = probe_optimizer(settings)
    size = format_ratio(probe.bytes_per_weight_byte)
    notes = [
        f"{KEY}.{TARGET}={settings._target_}: its state is estimated at {size} times the size of "
        "the weights, measured on small tensors"
    ]
    phases = [
        replace(phase, settings=replace(phase.settings, optimizer_state="reset"))
        if probe.unknown_entries and phase.operators and phase.settings.optimizer_state == "carry"
        else phase
        for phase in plan.phases
    ]
    if phases != plan.phases:
        entries = ", ".join(map(repr, probe.unknown_entries))
        notes.append(
            f"{KEY}.{TARGET}={settings._target_}: how its state {entries} grows is not known, so it begins anew "
            "in each phase that grows; growlm.growth.register_moment says how an entry grows"
        )
    return replace(plan, phases=phases), notes


def encode_state(
    parameter: Tensor, state: Mapping[str, Any], strict: bool = True
) -> ParameterState:
    """Return what an optimizer keeps for a parameter as tensors that can be saved.

    Entries that growlm knows keep their names; others get a prefix, under which `decode_state` finds them.

    Args:
        parameter: The parameter.
        state: What the optimizer keeps for it.
        strict: Whether an entry that cannot be saved is an error; else it is kept as it is.

    Raises:
        UserError: If an entry is neither a tensor nor a number.
    """
    encoded: ParameterState = {}
    for entry, value in state.items():
        if value is None:
            continue
        if isinstance(entry, str) and "." not in entry:
            if isinstance(value, Tensor):
                is_known = _is_known(entry, value, parameter)
                encoded[entry if is_known else f"{OWN_TENSOR}{entry}"] = value
                continue
            if entry == STEP and type(value) is int:
                encoded[STEP] = torch.tensor(value, dtype=PYTHON_STEP_DTYPE)
                continue
            if type(value) in OWN_NUMBERS:
                dtype = torch.float64 if type(value) is float else None
                encoded[f"{OWN_NUMBERS[type(value)]}{entry}"] = torch.tensor(value, dtype=dtype)
                continue
        if not strict:
            encoded[entry] = value
            continue
        reason = (
            f"cannot be saved: for a parameter it keeps {entry!r} of type {type(value).__name__}, and growlm "
            "saves tensors and numbers, under names without a dot"
        )
        raise UserError(f"{KEY}.{TARGET}", "", reason)
    return encoded


def decode_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `encode_state` was given."""
    decoded: dict[str, Any] = {}
    for entry, value in state.items():
        prefix, _, name = entry.rpartition(":")
        if entry == STEP and value.dtype == PYTHON_STEP_DTYPE:
            decoded[STEP] = int(value)
        elif f"{prefix}:" in OWN_NUMBERS.values():
            decoded[name] = value.item()
        else:
            decoded[entry.removeprefix(OWN_TENSOR)] = value
    return decoded


def _is_known(entry: str, value: Tensor, parameter: Tensor) -> bool:
    if entry == STEP:
        return value.ndim == 0 and value.dtype != PYTHON_STEP_DTYPE
    is_moment = entry in MOMENT_POWERS and value.is_floating_point()
    return is_moment and value.shape == parameter.shape
