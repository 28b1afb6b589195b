"""Build the optimizer of a phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from growlm.config.schema import OWN, OptimizerConfig
from growlm.growth.eight_bit_moments import is_quantizable, scale_key
from growlm.growth.model_protocol import axes_table_from_config
from growlm.growth.optimizer_state import FACTORED_ENTRIES
from growlm.model.axes import Label, Role, axes_table
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.optim import adamw_8bit
from growlm.optim.muon import MuonAdamW
from growlm.optim.own_optimizer import build_own_optimizer


def build_optimizer(
    model: nn.Module,
    settings: OptimizerConfig,
    lr: float,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> Optimizer:
    """Build the optimizer, with weight decay only on the matrices that read an axis.

    Args:
        model: Model with labeled axes; its labels decide which parameters decay.
        settings: Name and settings of the optimizer.
        lr: Learning rate.
        lr_factor: Function of a parameter's name. Its value multiplies the parameter's learning rate and
            divides its weight decay, so that one step decays it by the same amount.
    """
    table = axes_table(model)
    members: dict[tuple[bool, bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        label = table[name].label
        muon = settings.name == "muon" and is_hidden_matrix(label)
        members[label.has(Role.READS), muon, lr_factor(name)].append(parameter)
    groups: list[dict[str, Any]] = []
    for (decayed, muon, factor), parameters in members.items():
        decay = settings.weight_decay / factor if decayed else 0.0
        group = {"params": parameters, "lr": lr * factor, "weight_decay": decay}
        groups.append(group | ({"orthogonal": muon} if settings.name == "muon" else {}))
    return _BUILDERS[settings.name](groups, lr, settings)


def is_hidden_matrix(label: Label) -> bool:
    """Return whether Muon steps a parameter: a matrix, or stack of matrices, between axes inside the model."""
    to_vocabulary = label.has(Role.WRITES, "vocabulary")
    return label.has(Role.READS) and label.has(Role.WRITES) and not to_vocabulary


STATE_ENTRIES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "adafactor": FACTORED_ENTRIES,
}
"""The state entries that each kind of optimizer keeps for a parameter, besides its step count."""


def expected_state_entries(config: ModelConfig, optimizer_name: str) -> dict[str, tuple[str, ...]]:
    """Return the state entries an optimizer keeps for each parameter of a model, besides its step count."""
    entries = {}
    for parameter, row in axes_table_from_config(config, TransformerLM).items():
        kind = optimizer_name
        if optimizer_name == "muon":
            kind = "sgd" if is_hidden_matrix(row.label) else "adamw"
        elif optimizer_name == adamw_8bit.OPTIMIZER_NAME:
            kind = "adamw"
        entries[parameter] = STATE_ENTRIES[kind]
        if optimizer_name == adamw_8bit.OPTIMIZER_NAME and is_quantizable(row.shape):
            entries[parameter] += tuple(scale_key(entry) for entry in STATE_ENTRIES[kind])
    return entries


def _adamw(groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr, **_adam_settings(settings), fused=True)


def _sgd(groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig) -> Optimizer:
    assert settings.momentum is not None
    # Not fused: torch's fused step needs momentum for all parameters or for none, and new ones have none.
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)


def _adafactor(groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig) -> Optimizer:
    assert settings.beta2_decay is not None
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=settings.beta2_decay)


def _muon(groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig) -> Optimizer:
    assert settings.momentum is not None
    return MuonAdamW(groups, lr, settings.momentum, **_adam_settings(settings))


def _adamw_8bit(groups: list[dict[str, Any]], lr: float, settings: OptimizerConfig) -> Optimizer:
    return adamw_8bit.AdamW8bit(groups, lr, **_adam_settings(settings))


def _adam_settings(settings: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (settings.beta1, settings.beta2), "eps": settings.eps}


_BUILDERS = {
    "adamw": _adamw,
    adamw_8bit.OPTIMIZER_NAME: _adamw_8bit,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "muon": _muon,
    OWN: build_own_optimizer,
}
