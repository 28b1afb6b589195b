"""Initial values of the model, chosen by the axis labels of each parameter.

| parameter                          | initial value                                             |
|------------------------------------|-----------------------------------------------------------|
| gain of a norm                     | 1, less the label's offset                                |
| shift of a norm, any bias          | 0                                                         |
| matrix that writes the residual    | normal, 0.02 / sqrt(2 · layers) (Radford et al. 2019, 2.3) |
| any other matrix, the embeddings   | normal, 0.02                                              |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from growlm.model.axes import Label, LabeledShape, Role, axes_table
from growlm.model.keyed_rng import keyed_normal

INIT_STD = 0.02


def initialize_weights(model: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers in place. Each value depends on (seed, name) alone."""
    table = axes_table(model)
    n_layers: int = model.config.n_layers  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        for name, parameter in model.state_dict(keep_vars=True).items():
            parameter.copy_(initial_value(name, table[name], n_layers, seed))


def initial_value(name: str, row: LabeledShape, n_layers: int, seed: int) -> Tensor:
    """Return the initial value of a parameter or buffer, in fp32 on the CPU.

    Args:
        name: Name of the parameter or buffer.
        row: Its row of the axes table.
        n_layers: Number of the model's blocks.
        seed: Seed of all initial values.
    """
    mean, std = initial_distribution(row.label, n_layers)
    if std == 0:
        return torch.full(row.shape, mean)
    return keyed_normal(row.shape, "initial", seed, name).mul_(std)


def initial_distribution(label: Label, n_layers: int, std: float = INIT_STD) -> tuple[float, float]:
    """Return the mean and the standard deviation of a parameter's initial values; see the table above.

    Args:
        label: Label of the parameter.
        n_layers: Number of the model's blocks.
        std: Standard deviation of matrices that do not write the residual.
    """
    if label.has(Role.GAIN):
        return 1.0 - label.offset, 0.0
    if not is_matrix(label):
        return 0.0, 0.0
    return 0.0, std / math.sqrt(2 * n_layers) if is_residual_output(label) else std


def is_matrix(label: Label) -> bool:
    """Return whether a parameter is a matrix (it maps one axis to another, or looks up rows)."""
    return label.has(Role.READS) or label.is_lookup


def is_residual_output(label: Label) -> bool:
    """Return whether a parameter is the last of a sub-block, whose output is added to the residual stream."""
    return label.has(Role.READS) and label.has(Role.WRITES, "residual")
