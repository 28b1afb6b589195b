"""Read, fill and check the state of optimizers by parameter name.

`torch.distributed.checkpoint.state_dict` takes a whole state at once; here states are read and filled one tensor
at a time, also those in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from growlm.distributed.dtensors import (
    from_local,
    get_local_rows,
    get_local_tensor,
    is_sharded,
)
from growlm.growth.optimizer_state import (
    ParameterState,
    convert_moments,
    expected_state_shapes,
)
from growlm.optim.own_optimizer import decode_state, encode_state

KNOWN_TYPES = (AdamW, SGD, Adafactor)


def get_optimizer_states(
    model: nn.Module, optimizers: Sequence[Optimizer], without: nn.Module | None = None
) -> dict[str, ParameterState]:
    """Return the optimizers' own state tensors by parameter name; parameters without state are absent.

    Args:
        model: Model whose parameters' states are returned.
        optimizers: Optimizers that step them.
        without: Part of the model whose parameters are left out.
    """
    left_out = set() if without is None else set(without.parameters())
    return {
        name: {entry: value for entry, value in state.items() if value is not None}
        if _is_shipped(optimizer)
        else encode_state(parameter, state, strict=False)
        for name, parameter in model.named_parameters()
        if parameter not in left_out
        for optimizer in optimizers
        if (state := optimizer.state.get(parameter))
    }


def find_optimizer_names(
    model: nn.Module, optimizers: Sequence[Optimizer], without: nn.Module | None = None
) -> dict[str, str]:
    """Return the class of the optimizer that steps each parameter; takes what `get_optimizer_states` takes."""
    left_out = set() if without is None else set(without.parameters())
    names = {p: name for name, p in model.named_parameters() if p not in left_out}
    return {
        names[parameter]: type(optimizer).__name__
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter in names
    }


def restore_optimizer_states(
    model: nn.Module, optimizers: Sequence[Optimizer], states: Mapping[str, ParameterState]
) -> None:
    """Give the optimizers the states, which they take over in their own format and on their own device.

    Args:
        model: Model of the parameters.
        optimizers: Optimizers that have not stepped yet.
        states: States by parameter name. Those of parameters that no optimizer steps are left out.

    Raises:
        ValueError: If a state belongs to no parameter.
    """
    parameters = dict(model.named_parameters())
    if unknown := states.keys() - parameters.keys():
        raise ValueError(
            f"optimizer state of {min(unknown)}, which is not a parameter of the model"
        )
    owners = {
        parameter: (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, state in states.items():
        parameter = parameters[name]
        if parameter in owners:
            optimizer, group = owners[parameter]
            convert: Callable[[ParameterState], ParameterState]
            convert = getattr(optimizer, "convert_state", _convert_to_plain)
            converted: dict[str, Any] = convert(state)
            if not _is_shipped(optimizer):
                converted = decode_state(converted)
            optimizer.state[parameter] = {
                entry: _move(entry, value, parameter, group) for entry, value in converted.items()
            }


def _is_shipped(optimizer: Optimizer) -> bool:
    """Return whether growlm knows all that an optimizer keeps; of others, it may be of any kind."""
    return type(optimizer) in KNOWN_TYPES or hasattr(optimizer, "convert_state")


def _convert_to_plain(state: ParameterState) -> ParameterState:
    return convert_moments(state, use_8bit=False)


def _move(entry: str, value: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """Move a tensor to its parameter's device, sharded as it is.

    Step counts go there only for kernels that read them there.
    """
    if is_sharded(parameter) and isinstance(value, Tensor) and value.ndim and not is_sharded(value):
        rows = value[get_local_rows(parameter)].to(get_local_tensor(parameter).device, copy=True)
        return from_local(rows, value.shape, parameter.device_mesh)
    reads_step_on_device = group.get("fused") or group.get("capturable")
    if not isinstance(value, Tensor) or (entry == "step" and not reads_step_on_device):
        return value
    return value.to(parameter.device)


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that every trainable parameter is in exactly one group and that all state has the right shape.

    What an optimizer of the user's own keeps may have any shape.

    Raises:
        ValueError: With the name of the first parameter for which this is not so.
    """
    groups = [id(p) for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for identity, name in names.items():
        if (count := groups.count(identity)) != 1:
            raise ValueError(
                f"{name} is in {count} groups of the optimizer, must be in exactly one"
            )
    if unknown := set(groups) - names.keys():
        raise ValueError(
            f"the optimizer steps {len(unknown)} tensors that are not parameters of the model"
        )
    if not _is_shipped(optimizer):
        return
    for name, parameter in model.named_parameters():
        state = {k: v for k, v in optimizer.state.get(parameter, {}).items() if v is not None}
        shapes = {entry: tuple(value.shape) for entry, value in state.items()}
        expected = expected_state_shapes(shapes, tuple(parameter.shape))
        if shapes != expected:
            raise ValueError(f"optimizer state of {name} is {shapes}, must be {expected}")
