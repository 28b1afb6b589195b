"""Axis labels say what each dimension of each parameter means; they are declared beside the parameter.

A module declares its parameters with `label(self, weight=Label(...))`, and the container of its repeated blocks
with `label_blocks`. Growth, initialization, weight decay and sharding read the table that `axes_table` collects,
so no other code depends on parameter names. docs/own_models.md has the reference.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from torch import nn

Blocks = TypeVar("Blocks", bound=nn.Module)

DEFAULT_STACK = "blocks"
"""Name of the container of the blocks in a model that marks none with `label_blocks`."""

BLOCK_NAME_PATTERN = re.compile(r"^blocks\.(\d+)\.(.+)$")
"""Names of the parameters of the blocks of `TransformerLM`: `blocks.<index>.<rest>`."""


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


def gain(axis: str) -> Dim:
    """Return the dimension of a norm's multipliers, one per channel of `axis`."""
    return Dim(Role.GAIN, axis)


def shift(axis: str) -> Dim:
    """Return the dimension of a norm's offsets, one per channel of `axis`."""
    return Dim(Role.SHIFT, axis)


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
class BlockPosition:
    """The place of a parameter inside a repeated block.

    Args:
        stack: Name of the container of the blocks, such as `blocks` or `model.layers`.
        index: Index of the block.
        name: Name of the parameter inside the block.
    """

    stack: str
    index: int
    name: str

    def name_at(self, index: int, name: str) -> str:
        """Return the full name of a parameter of another block."""
        return f"{self.stack}.{index}.{name}"


@dataclass(frozen=True)
class LabeledShape:
    """The label and shape of one parameter: a row of the axes table."""

    label: Label
    shape: tuple[int, ...]
    position: BlockPosition | None = None
    """Place inside a block; None for a parameter outside the blocks."""

    @property
    def block(self) -> int | None:
        """Index of the parameter's block; None outside the blocks."""
        return None if self.position is None else self.position.index


def label(module: nn.Module, **labels: Label) -> None:
    """Declare the axes of a module's own parameters and buffers."""
    declared: dict[str, Label] = dict(getattr(module, "axis_labels", {}))
    module.axis_labels = declared | labels  # type: ignore[assignment]


def label_blocks(blocks: Blocks) -> Blocks:
    """Mark the container of a model's repeated blocks, such as an `nn.ModuleList`, and return it."""
    blocks.holds_blocks = True  # type: ignore[assignment]
    return blocks


def find_block_stack(model: nn.Module) -> str | None:
    """Return the name of the container of the model's blocks; None if it has none.

    Raises:
        ValueError: If several containers are marked.
    """
    modules = list(model.named_modules())
    found = [name for name, module in modules if getattr(module, "holds_blocks", False)]
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(found)} are both marked with label_blocks; a model has one stack of blocks"
        )
    return found[0] if found else next((n for n, _ in modules if n == DEFAULT_STACK), None)


def get_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model, first block first; empty if it has none."""
    stack = find_block_stack(model)
    if stack is None:
        return []
    # `children` would list a block that stands in several places once.
    return [block for block in model.get_submodule(stack)._modules.values() if block is not None]


def axes_table(model: nn.Module) -> dict[str, LabeledShape]:
    """Return every parameter and persistent buffer of `model`, by name, with its label.

    Axes that the model's `growth_axes` renames have their standard names in it.

    Raises:
        ValueError: If one has no label, a label with the wrong number of dimensions, or two different ones under
            two names. Growth would have to guess how to handle it, and a silent copy would lose what the model
            has learned.
    """
    standard_names: Mapping[str, str] = getattr(model, "growth_axes", {})
    stack = find_block_stack(model)
    labels: dict[str, Label] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, declared in getattr(module, "axis_labels", {}).items():
            dims = tuple(Dim(d.role, standard_names.get(d.axis, d.axis)) for d in declared.dims)
            labels[f"{prefix}.{name}" if prefix else name] = replace(declared, dims=dims)
    table: dict[str, LabeledShape] = {}
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in labels:
            raise ValueError(f"{name} has no axis label: declare it with growlm.model.label")
        if len(labels[name].dims) != tensor.ndim:
            raise ValueError(
                f"{name} has {tensor.ndim} dimensions, but its label has {len(labels[name].dims)}"
            )
        other = names.setdefault(id(tensor), name)
        if labels[other] != labels[name]:
            raise ValueError(f"{other} and {name} are one parameter, but have two different labels")
        table[name] = LabeledShape(labels[name], tuple(tensor.shape), find_position(name, stack))
    return table


def find_position(name: str, stack: str | None) -> BlockPosition | None:
    """Return the place of a parameter in the blocks of the container `stack`; None if it is outside."""
    if stack is None or not name.startswith(f"{stack}."):
        return None
    index, _, rest = name[len(stack) + 1 :].partition(".")
    return BlockPosition(stack, int(index), rest) if index.isdecimal() and rest else None


def check_axis_sizes(
    table: Mapping[str, LabeledShape], sizes: Mapping[str, int], own_axes: Iterable[str] = ()
) -> None:
    """Check that every labeled dimension is as large as its axis.

    Args:
        table: Result of `axes_table`.
        sizes: Number of channels of each axis, from the model's config. An index over anything else is allowed.
        own_axes: Further axes, of which all dimensions must have one size.

    Raises:
        ValueError: If an axis is unknown or has another size; names the parameter.
    """
    known = dict(sizes)
    sources = dict.fromkeys(sizes, "the config")
    for name, row in table.items():
        for dim, size in zip(row.label.dims, row.shape, strict=True):
            if dim.axis not in known and dim.axis in own_axes:
                known[dim.axis], sources[dim.axis] = size, name
            if dim.axis not in known and dim.role is not Role.INDEX:
                reason = (
                    f"which the config does not have; {_suggest(dim.axis, [*known, *own_axes])}"
                )
                raise ValueError(f"{name} is labeled with axis {dim.axis}, {reason}")
            if size != known.get(dim.axis, size):
                expected = f"{sources[dim.axis]} has {known[dim.axis]}"
                raise ValueError(f"{name} has {size} channels on axis {dim.axis}, but {expected}")


def check_growth_axes(growth_axes: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Check a model's `growth_axes`, and return the axes in it that are the model's own.

    Args:
        growth_axes: Standard axis by the name that the model has for it; an axis of its own stands for itself.
        known: The standard axes.

    Raises:
        ValueError: If an axis stands for one that does not exist.
    """
    for name, axis in growth_axes.items():
        if axis != name and axis not in known:
            reason = f"{axis}, which is no standard axis; {_suggest(axis, known)}"
            raise ValueError(f"growth_axes: {name} stands for {reason}")
    return [name for name, axis in growth_axes.items() if name == axis]


def _suggest(axis: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(axis, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def split_block_name(name: str) -> tuple[int | None, str]:
    """Split the name of a parameter of `TransformerLM` into the block's index and the name inside the block.

    `blocks.3.attention.query.weight` gives (3, "attention.query.weight"); a name outside the blocks gives
    (None, name).
    """
    match = BLOCK_NAME_PATTERN.match(name)
    return (int(match[1]), match[2]) if match else (None, name)
