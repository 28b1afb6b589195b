"""Every initial value of the model, by what the parameter's axes say it is.

| parameter                          | initial value                                             |
|------------------------------------|-----------------------------------------------------------|
| gain of a norm                     | 1                                                         |
| shift of a norm, any bias          | 0                                                         |
| matrix that writes the residual    | normal, 0.02 / sqrt(2 · layers) (Radford et al. 2019, 2.3) |
| any other matrix, the embedding    | normal, 0.02                                              |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from growlm.model.axes import Label, LabeledShape, Role, axes_table
from growlm.model.keyed_rng import keyed_normal

INIT_STD = 0.02


def initialize_weights(model: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers in place. Each depends on (seed, its name) alone."""
    table = axes_table(model)
    n_layers: int = model.config.n_layers  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        for name, parameter in model.state_dict(keep_vars=True).items():
            parameter.copy_(initial_value(name, table[name], n_layers, seed))


def initial_value(name: str, row: LabeledShape, n_layers: int, seed: int) -> Tensor:
    """What a parameter or buffer begins with, in fp32 on the CPU.

    Args:
        name: Its name.
        row: Its row of the axes table.
        n_layers: Of the model.
        seed: Of all initial values.
    """
    if row.label.has(Role.GAIN):
        return torch.ones(row.shape)
    if not is_matrix(row.label):
        return torch.zeros(row.shape)
    std = INIT_STD / math.sqrt(2 * n_layers) if is_residual_output(row.label) else INIT_STD
    return keyed_normal(row.shape, "initial", seed, name).mul_(std)


def is_matrix(label: Label) -> bool:
    """Whether a parameter maps one axis to another, or looks rows up: neither a bias nor part of a norm."""
    return label.has(Role.READS) or label.has(Role.INDEX, "vocabulary")


def is_residual_output(label: Label) -> bool:
    """Whether a parameter is the last of a sub-block: what it makes is added to the residual stream."""
    return label.has(Role.READS) and label.has(Role.WRITES, "residual")
