"""Labelled axes: what each dimension of each parameter means, declared beside the parameter.

A module declares its parameters with `label(self, weight=Label(...))`. Growth, initialisation, weight decay
and (later) sharding read the table that `axes_table` collects; nobody else needs to know a tensor's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from torch import nn

BLOCK_NAME_PATTERN = re.compile(r"^blocks\.(\d+)\.(.+)$")
"""Parameters of the repeated blocks: `blocks.<index>.<rest>`."""


class Role(Enum):
    """What a dimension does with its axis."""

    WRITES = "writes"  # rows produce the axis's channels
    READS = "reads"  # columns consume them
    INDEX = "index"  # one entry per member: vocabulary, experts
    GAIN = "gain"  # a norm's multiplier of each channel
    SHIFT = "shift"  # a norm's addition to each channel


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter: what it does (`role`), with which channels (`axis`)."""

    role: Role
    axis: str


def writes(axis: str) -> Dim:
    """Rows that produce the channels of `axis`."""
    return Dim(Role.WRITES, axis)


def reads(axis: str) -> Dim:
    """Columns that consume the channels of `axis`."""
    return Dim(Role.READS, axis)


def index(axis: str) -> Dim:
    """One entry per member of `axis`."""
    return Dim(Role.INDEX, axis)


@dataclass(frozen=True)
class Label:
    """The axes of one parameter.

    Args:
        dims: One per dimension of the tensor.
        stacked_from: For a stack of experts: the parameter of the dense feed-forward block (its name inside
            the block) that each expert replaces.
        read_undivided: For the norm before a tied head: the matrix that reads it also writes the residual
            stream, so a growth cannot divide that matrix's columns and scales the norm in its place.
    """

    dims: tuple[Dim, ...]
    stacked_from: str | None = None
    feeds_tied_head: bool = False

    @property
    def is_router(self) -> bool:
        """Whether the parameter is a router: a row for each member, that reads and writes no channels."""
        return self.has(Role.INDEX) and self.has(Role.READS) and not self.has(Role.WRITES)

    def has(self, role: Role, axis: str | None = None) -> bool:
        """Whether any dimension has this role (with this axis)."""
        return any(dim.role is role and axis in (None, dim.axis) for dim in self.dims)


@dataclass(frozen=True)
class LabeledShape:
    """A row of the axes table."""

    label: Label
    shape: tuple[int, ...]


def label(module: nn.Module, **labels: Label) -> None:
    """Declare the axes of a module's own parameters and buffers."""
    declared: dict[str, Label] = dict(getattr(module, "axis_labels", {}))
    module.axis_labels = declared | labels  # type: ignore[assignment]


def axes_table(model: nn.Module) -> dict[str, LabeledShape]:
    """Every parameter and persistent buffer of `model`, by name, with its label.

    Raises:
        ValueError: If one has no label, or a label of another number of dimensions. Growth would have to
            guess what to do with it, and a silent copy is how learnt things get lost.
    """
    labels: dict[str, Label] = {}
    for prefix, module in model.named_modules():
        for name, declared in getattr(module, "axis_labels", {}).items():
            labels[f"{prefix}.{name}" if prefix else name] = declared
    table = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in labels:
            raise ValueError(f"{name} has no axis label: declare it with growlm.model.axes.label")
        if len(labels[name].dims) != tensor.ndim:
            raise ValueError(
                f"{name} has {tensor.ndim} dimensions and a label of {len(labels[name].dims)}"
            )
        table[name] = LabeledShape(labels[name], tuple(tensor.shape))
    return table


def split_block_name(name: str) -> tuple[int | None, str]:
    """`blocks.3.attention.query.weight` -> (3, "attention.query.weight"); (None, name) outside blocks."""
    match = BLOCK_NAME_PATTERN.match(name)
    return (int(match[1]), match[2]) if match else (None, name)
