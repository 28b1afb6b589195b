"""The optimizer of a phase, and its state by parameter name."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from growlm.config.schema import OptimizerConfig
from growlm.growth.optimizer_state import State
from growlm.model.axes import Role, axes_table


def build_optimizer(model: nn.Module, settings: OptimizerConfig, lr: float) -> Optimizer:
    """Fused AdamW with weight decay on the matrices that read an axis, and on nothing else."""
    table = axes_table(model)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if table[name].label.has(Role.READS) else plain).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def states_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, State]:
    """The optimizer's own state tensors, by parameter name; parameters without state are absent."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter)
    }


def load_states(model: nn.Module, optimizer: Optimizer, states: dict[str, State]) -> None:
    """Start the optimizer from `states`, which it takes over.

    Raises:
        ValueError: If a state belongs to no parameter, or is not of its parameter's shape; if a parameter is not
            in exactly one group.
    """
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        for entry, value in state.items():
            if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
                raise ValueError(f"optimizer state {entry} of {name} fits no parameter")
        optimizer.state[parameters[name]] = state
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if sorted(grouped) != sorted(id(p) for p in parameters.values()):
        raise ValueError("a parameter is not in exactly one group of the optimizer")
