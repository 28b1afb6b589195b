"""Axis labels say what each dimension of each parameter means; they are declared beside the parameter.

A module declares its parameters with `label(self, weight=Label(...))`. Growth, initialization, weight decay
and sharding read the table that `axes_table` collects, so no other code depends on parameter names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import nn

BLOCK_NAME_PATTERN = re.compile(r"^blocks\.(\d+)\.(.+)$")
"""Names of the parameters of the repeated blocks: `blocks.<index>.<rest>`."""


class Role(Enum):
    """The role of a parameter's dimension with respect to an axis."""

    WRITES = "writes"  # its rows produce the axis's channels
    READS = "reads"  # its columns consume them
    INDEX = "index"  # it has one entry per member: vocabulary, experts
    GAIN = "gain"  # a norm's multiplier for each channel
    SHIFT = "shift"  # a norm's offset for each channel


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter: its role, and the axis whose channels it runs over."""

    role: Role
    axis: str


def writes(axis: str) -> Dim:
    """Return a dimension whose rows produce the channels of `axis`."""
    return Dim(Role.WRITES, axis)


def reads(axis: str) -> Dim:
    """Return a dimension whose columns consume the channels of `axis`."""
    return Dim(Role.READS, axis)


def index(axis: str) -> Dim:
    """Return a dimension with one entry per member of `axis`."""
    return Dim(Role.INDEX, axis)


@dataclass(frozen=True)
class Label:
    """The axes of one parameter.

    Args:
        dims: One entry per dimension of the tensor.
        stacked_from: For a stack of experts: the parameter of the dense feed-forward block (its name inside
            the block) that each expert replaces.
        feeds_tied_head: Whether this is the norm before a tied head. The matrix that reads it also writes the
            residual stream, so growth cannot divide that matrix's columns and scales the norm instead.
        ends_update: Whether this is the last parameter of a sub-block, whose result is added to the residual
            stream: at zero, the sub-block adds nothing. None: it is if it writes the residual stream.
        offset: Constant that the model adds to the parameter wherever it uses it.
    """

    dims: tuple[Dim, ...]
    stacked_from: str | None = None
    feeds_tied_head: bool = False
    ends_update: bool | None = None
    offset: float = 0.0

    @property
    def is_router(self) -> bool:
        """Whether the parameter is a router: one row per member, and no channels are written."""
        return self.has(Role.INDEX) and self.has(Role.READS) and not self.has(Role.WRITES)

    @property
    def is_lookup(self) -> bool:
        """Whether the parameter is a table whose rows are looked up: by token, or by position."""
        return self.has(Role.INDEX, "vocabulary") or self.has(Role.INDEX, "positions")

    @property
    def adds_to_stream(self) -> bool:
        """Whether the parameter's result is added to the residual stream; see `ends_update`."""
        if self.ends_update is not None:
            return self.ends_update
        return self.has(Role.WRITES, "residual")

    def has(self, role: Role, axis: str | None = None) -> bool:
        """Return whether any dimension has this role (and this axis, if given)."""
        return any(dim.role is role and axis in (None, dim.axis) for dim in self.dims)


@dataclass(frozen=True)
class LabeledShape:
    """The label and shape of one parameter: a row of the axes table."""

    label: Label
    shape: tuple[int, ...]


def label(module: nn.Module, **labels: Label) -> None:
    """Declare the axes of a module's own parameters and buffers."""
    declared: dict[str, Label] = dict(getattr(module, "axis_labels", {}))
    module.axis_labels = declared | labels  # type: ignore[assignment]


def axes_table(model: nn.Module) -> dict[str, LabeledShape]:
    """Return every parameter and persistent buffer of `model`, by name, with its label.

    Raises:
        ValueError: If one has no label, a label with the wrong number of dimensions, or two different ones under
            two names. Growth would have to guess how to handle it, and a silent copy would lose what the model
            has learned.
    """
    labels: dict[str, Label] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, declared in getattr(module, "axis_labels", {}).items():
            labels[f"{prefix}.{name}" if prefix else name] = declared
    table: dict[str, LabeledShape] = {}
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in labels:
            raise ValueError(f"{name} has no axis label: declare it with growlm.model.axes.label")
        if len(labels[name].dims) != tensor.ndim:
            raise ValueError(
                f"{name} has {tensor.ndim} dimensions, but its label has {len(labels[name].dims)}"
            )
        other = names.setdefault(id(tensor), name)
        if labels[other] != labels[name]:
            raise ValueError(f"{other} and {name} are one parameter, but have two different labels")
        table[name] = LabeledShape(labels[name], tuple(tensor.shape))
    return table


def check_axis_sizes(table: Mapping[str, LabeledShape], sizes: Mapping[str, int]) -> None:
    """Check that every labeled dimension is as large as its axis.

    Args:
        table: Result of `axes_table`.
        sizes: Number of channels of each axis, from the model's config. An index over anything else is allowed.

    Raises:
        ValueError: If an axis is unknown or has another size; names the parameter.
    """
    for name, row in table.items():
        for dim, size in zip(row.label.dims, row.shape, strict=True):
            if dim.axis not in sizes and dim.role is not Role.INDEX:
                near = difflib.get_close_matches(dim.axis, sizes, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sizes)}"
                raise ValueError(
                    f"{name} is labeled with axis {dim.axis}, which the config does not have; {hint}"
                )
            if size != sizes.get(dim.axis, size):
                expected = sizes[dim.axis]
                raise ValueError(
                    f"{name} has {size} channels on axis {dim.axis}, but the config has {expected}"
                )


def split_block_name(name: str) -> tuple[int | None, str]:
    """Split a parameter name into the block's index and the name inside the block.

    `blocks.3.attention.query.weight` gives (3, "attention.query.weight"); a name outside the blocks gives
    (None, name).
    """
    match = BLOCK_NAME_PATTERN.match(name)
    return (int(match[1]), match[2]) if match else (None, name)
