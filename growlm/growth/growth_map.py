"""The one place that turns "what happens to axes, blocks and experts" into "what happens to each tensor".

An operator describes its change (`Change`); `derive` reads the axes tables of the model before and after
and writes down, for every new tensor, its source and the chain of pieces that makes it: a `GrowthMap`. Live
models, optimizer moments, files and the verification all use that map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_rng import Draws
from growlm.growth.transforms.fused import chain_moment, chain_weight
from growlm.growth.transforms.noise import Noise, TieBreak
from growlm.growth.transforms.reconstruction import Reconstruction, all_finite
from growlm.growth.transforms.scale_factors import Factors, as_originals, no_factors
from growlm.growth.transforms.tensor_transforms import (
    Copy,
    Fill,
    FillWhole,
    Forget,
    Piece,
    RedrawWhole,
    Scale,
    Split,
)
from growlm.growth.transforms.upcycle_transforms import Cut, Redraw
from growlm.model.axes import Dim, Label, LabelledShape, Role, axes_table, split_block_name
from growlm.model.config import ModelConfig

AxesTable = Mapping[str, LabelledShape]


@dataclass(frozen=True)
class AxisGrowth:
    """What happens to one axis.

    Args:
        channels: Which channel copies which.
        written_filler: What rows that write a filler hold: `zero`, `random`, or the `mean` over the other rows.
        read_filler: What columns that read a filler hold: `random` or `zero`.
        gain_factor: What norms over the axis multiply their gain with.
    """

    channels: ChannelMap
    written_filler: str = "zero"
    read_filler: str = "random"
    gain_factor: float = 1.0


@dataclass(frozen=True)
class BlockOrigin:
    """Where a block of the grown model comes from.

    Args:
        source: Old block.
        kind: `kept`: that block; `identity`: a second one of it whose output projections are zero; `fresh`:
            likewise, and its other matrices are drawn anew; `copy`: a second one of it.
    """

    source: int
    kind: str = "kept"


@dataclass(frozen=True)
class NoiseLevel:
    """How much cancelling noise the copies get; see `Noise`."""

    std: float
    snr_db: float | None = None


@dataclass(frozen=True)
class DenseToExperts:
    """How a dense feed-forward block becomes experts."""

    shards: ChannelMap
    """Which shard of the block's hidden units each expert copies; one shard is the whole block."""
    router_rows: ChannelMap
    """Which drawn row of the router each expert has."""
    router_std: float
    """Of the drawn rows; 0 for zeros."""
    redrawn_fraction: float = 0.0
    """Of each expert's hidden units, drawn anew."""


@dataclass(frozen=True)
class Change:
    """An operator's effect, in the model's own terms."""

    config: ModelConfig
    """The grown model's."""
    description: list[str]
    """What was done, a line each, for people."""
    lossless: bool = True
    axes: Mapping[str, AxisGrowth] = field(default_factory=dict)
    blocks: tuple[BlockOrigin, ...] | None = None
    """One per block of the grown model; None if blocks stay as they are."""
    noise: NoiseLevel | None = None
    """Of the cancelling noise on copies; None for none."""
    tie_breaking_std: float = 0.0
    """Of the noise on copies of a router's rows."""
    to_experts: DenseToExperts | None = None
    """Without it no new tensor may be without a source."""


@dataclass(frozen=True)
class TensorMap:
    """How one new tensor is made."""

    source: str | None
    """The old tensor; None if the new one owes nothing to any."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()

    def weight(self, source: Tensor, draws: Draws) -> Tensor:
        """The new weight, in the source's precision; the source is left as it is.

        Args:
            source: The old weight. Where there is none, any tensor of the precision wanted.
            draws: Random entries.
        """
        return self._own(chain_weight(self.pieces, source, draws), source)

    def moment(self, source: Tensor, power: int) -> Tensor:
        """The running mean of gradient**power that the new weight starts with."""
        return self._own(chain_moment(self.pieces, source, power), source)

    def factors(self, start: Factors) -> Factors:
        """The factors of each entry after the chain, from those of the source."""
        for piece in self.pieces:
            start = piece.factors(start)
        return start

    def reconstruct(
        self,
        grown: Tensor,
        source: Callable[[], Tensor],
        stored_as: torch.dtype,
        session: dict[Any, Tensor],
    ) -> Reconstruction:
        """Follow a grown tensor back to its source, and check what each step guarantees.

        Args:
            grown: The tensor.
            source: Gives the old tensor; asked once the grown one has been reduced to its size, or by a step that
                draws numbers like those of the source.
            stored_as: The precision that the tensor was grown in, if it has been brought to another since.
            session: What the tensors of one model tell each other; empty at first.

        Returns:
            The source as the grown tensor has it, with all faults that were found.
        """
        dtype = torch.promote_types(grown.dtype, torch.float32)

        def make(steps: Sequence[Piece], drawn: bool) -> Tensor:
            with Draws(seed=0) if drawn else Draws.silent() as draws:
                return chain_weight(steps, source().to(dtype), draws)

        found = Reconstruction(grown.to(dtype), stored_as, make, session)
        if not all_finite(grown):
            found.fail("holds NaN or infinity")
            return found
        for place in reversed(range(len(self.pieces))):
            found.earlier = self.pieces[:place]
            self.pieces[place].undo(found)
            if found.is_done:
                return found
        if self.source is not None:
            old = source().to(stored_as).to(dtype)
            if not all_finite(old):
                found.fail("the old model's tensor holds NaN or infinity")
            found.require_equal(old, "differs from its source")
        return found

    def free_entries(self, old_shape: Sequence[int], draws: Draws) -> Tensor:
        """Return which entries of the grown tensor may hold any number of their range, a mask.

        Args:
            old_shape: The source's shape.
            draws: Of the growth; its seed says which hidden units were drawn anew.
        """
        mask = torch.zeros(tuple(old_shape), dtype=torch.bool)
        for place, piece in enumerate(self.pieces):
            mask = piece.free(mask, self.pieces[place + 1 :], draws)
        return mask

    @property
    def forgets(self) -> bool:
        """Whether nothing of the source's past remains: the optimizer starts this tensor at step 0."""
        return any(isinstance(piece, FillWhole | Forget) for piece in self.pieces)

    @property
    def keeps_weight(self) -> bool:
        """Whether the new weight is the source, entry by entry."""
        return self.source is not None and all(isinstance(p, Forget) for p in self.pieces)

    @property
    def keeps_moments(self) -> bool:
        """Likewise the moments."""
        return self.source is not None and not self.pieces

    def _own(self, x: Tensor, source: Tensor) -> Tensor:
        if tuple(x.shape) != self.shape:
            raise AssertionError(f"grown to {tuple(x.shape)}, expected {self.shape}")
        return x.clone() if x is source else x.contiguous()


@dataclass(frozen=True)
class GrowthMap:
    """Everything that a growth does, as data."""

    old_config: ModelConfig
    new_config: ModelConfig
    tensors: dict[str, TensorMap]
    """By new name."""
    axes: dict[str, ChannelMap]
    """By axis, those that changed."""
    blocks: tuple[BlockOrigin, ...]
    """One per new block."""
    lossless: bool
    description: list[str]
    old_shapes: dict[str, tuple[int, ...]]
    """By old name."""

    @staticmethod
    def identity(config: ModelConfig, table: AxesTable) -> GrowthMap:
        """The growth that changes nothing."""
        blocks = tuple(BlockOrigin(i) for i in range(config.n_layers))
        tensors = {name: TensorMap(name, row.shape) for name, row in table.items()}
        shapes = {name: row.shape for name, row in table.items()}
        return GrowthMap(config, config, tensors, {}, blocks, True, [], shapes)

    def then(self, later: GrowthMap) -> GrowthMap:
        """This growth followed by another, as one map: chains are joined, nothing is made in between."""
        tensors = {}
        for name, step in later.tensors.items():
            if step.source is not None:
                before = self.tensors[step.source]
                begins_anew = any(isinstance(piece, FillWhole) for piece in step.pieces)
                pieces = step.pieces if begins_anew else before.pieces + step.pieces
                step = TensorMap(before.source, step.shape, pieces)
            tensors[name] = step
        axes = dict(self.axes)
        for axis, channels in later.axes.items():
            axes[axis] = axes[axis].then(channels) if axis in axes else channels
        sizes = (
            later.new_config.axis_sizes()
        )  # a cut block has another map of hidden units in every expert
        axes = {a: channels for a, channels in axes.items() if channels.new_size == sizes.get(a)}
        return GrowthMap(
            self.old_config,
            later.new_config,
            tensors,
            axes,
            tuple(self._origin_through(origin) for origin in later.blocks),
            self.lossless and later.lossless,
            self.description + later.description,
            self.old_shapes,
        )

    def factors(self, before: Mapping[str, Factors] | None = None) -> dict[str, Factors]:
        """What the growth did to each entry of every new tensor and to its gradient.

        Args:
            before: Factors that old tensors had already, from earlier growths; none if not given.

        Returns:
            By new name; `original` is about this growth alone.
        """
        before = before or {}
        found = {}
        for name, tensor_map in self.tensors.items():
            source = tensor_map.source
            if source is None:
                found[name] = no_factors(tensor_map.shape)
            else:
                start = before.get(source) or no_factors(self.old_shapes[source])
                found[name] = tensor_map.factors(as_originals(start))
        return found

    def _origin_through(self, later: BlockOrigin) -> BlockOrigin:
        before = self.blocks[later.source]
        return before if later.kind == "kept" else BlockOrigin(before.source, later.kind)

    def old_block_at(self, new_block: int) -> int | None:
        """The old block whose output the residual stream still holds after `new_block`, in a lossless growth.

        None before the first kept block: there it holds the embeddings.
        """
        kept = [o.source for o in self.blocks[: new_block + 1] if o.kind == "kept"]
        return kept[-1] if kept else None


def derive(
    old_config: ModelConfig, old: AxesTable, new: AxesTable, change: Change, operator_index: int
) -> GrowthMap:
    """The map of one operator.

    Args:
        old_config: The model before.
        old: Its axes table.
        new: The grown model's axes table.
        change: What the operator does.
        operator_index: Its place in the sequence, part of the seed of what it draws.

    Raises:
        ValueError: If a new tensor has no source and the operator makes no fresh ones, or source and target
            do not have the same axes.
    """
    blocks = change.blocks or tuple(BlockOrigin(i) for i in range(old_config.n_layers))
    tensors = {
        name: _derive_tensor(name, row, old, blocks, change, operator_index)
        for name, row in new.items()
    }
    axes = {axis: growth.channels for axis, growth in change.axes.items()}
    return GrowthMap(
        old_config,
        change.config,
        tensors,
        axes,
        blocks,
        change.lossless,
        change.description,
        {name: row.shape for name, row in old.items()},
    )


def _derive_tensor(
    name: str,
    row: LabelledShape,
    old: AxesTable,
    blocks: tuple[BlockOrigin, ...],
    change: Change,
    operator_index: int,
) -> TensorMap:
    block, rest = split_block_name(name)
    origin = None if block is None else blocks[block]

    def in_source_block(rest: str) -> str:
        return rest if origin is None else f"blocks.{origin.source}.{rest}"

    key = (operator_index, name)
    source = in_source_block(rest)
    pieces: list[Piece] = []
    dims = list(enumerate(row.label.dims))
    if source in old:
        if old[source].label.dims != row.label.dims:
            raise ValueError(f"{source} and {name} have different axes")
    elif row.label.stacked_from is not None and in_source_block(row.label.stacked_from) in old:
        source = in_source_block(row.label.stacked_from)
        if change.to_experts is None:
            raise ValueError(f"{name} is a stack of {source}, which this operator does not make")
        pieces += _to_experts(row, change.to_experts, block or 0, key)
        dims = dims[1:]
    elif change.to_experts is not None:
        return TensorMap(None, row.shape, _fresh(row, change.to_experts, key))
    else:
        raise ValueError(f"{name} has no source and this operator makes no fresh tensors")

    for position, dim in dims:
        if dim.axis in change.axes:
            pieces += _along_axis(position, dim, change, row, key)
    if origin is not None and origin.kind in ("identity", "fresh"):
        adds_to_stream = row.label.has(Role.WRITES, "residual")
        if origin.kind == "fresh" and row.label.has(Role.READS) and not adds_to_stream:
            pieces.append(RedrawWhole(key))
        pieces.append(FillWhole(row.shape) if adds_to_stream else Forget())
    return TensorMap(source, row.shape, tuple(pieces))


def _along_axis(
    position: int, dim: Dim, change: Change, row: LabelledShape, key: tuple[int, str]
) -> list[Piece]:
    growth = change.axes[dim.axis]
    channels = growth.channels
    if dim.role is Role.READS or row.label.read_undivided:
        pieces: list[Piece] = [Split(position, channels)]
    else:
        pieces = [Copy(position, channels)]
    if channels.has_fillers:
        # A filler gain of zero behind a zero channel would stay dead, so gains are filled with their mean.
        by_role = {Role.READS: growth.read_filler, Role.GAIN: "mean", Role.SHIFT: "zero"}
        pieces.append(Fill(position, channels, by_role.get(dim.role, growth.written_filler), key))
    if dim.role is Role.GAIN and growth.gain_factor != 1.0:
        pieces.append(Scale(growth.gain_factor))
    if change.noise is not None and _takes_noise(dim, row.label):
        level, alike = change.noise, _repeated_rows(position, change, row)
        pieces.append(Noise(position, channels, level.std, level.snr_db, key, alike))
    if change.tie_breaking_std and dim.role is Role.INDEX and row.label.scores_members:
        pieces.append(TieBreak(channels, change.tie_breaking_std, key))
    return pieces


def _repeated_rows(position: int, change: Change, row: LabelledShape) -> tuple[int, int] | None:
    """The dimension before `position` whose channels have been copied whole, and the channels of one copy."""
    for other, dim in enumerate(row.label.dims[:position]):
        if dim.role is Role.WRITES and dim.axis in change.axes:
            return other, change.axes[dim.axis].channels.period
    return None


def _takes_noise(dim: Dim, label: Label) -> bool:
    """Whether copies along `dim` get equal inputs, or equal gates, so that noise cancels: matrices alone."""
    is_summed_over = dim.role is Role.INDEX and label.has(Role.WRITES, "residual")
    return dim.role is Role.READS or (is_summed_over and label.has(Role.READS))


def _to_experts(
    row: LabelledShape, growth: DenseToExperts, block: int, key: tuple[int, str]
) -> list[Piece]:
    """The pieces that make a stack of experts of a dense block's tensor."""
    shards = growth.shards
    hidden = [place for place, dim in enumerate(row.label.dims) if dim.axis == "hidden"]
    if shards.old_size == 1 or not hidden:
        shards = ChannelMap.equal_shares(1, torch.zeros(shards.new_size, dtype=torch.long))
        pieces: list[Piece] = [Copy(0, shards, inserts=True)]
    else:
        scaled = row.label.has(Role.READS, "hidden")  # each shard has its part of the gate
        pieces = [Scale(shards.old_size)] if scaled else []
        pieces.append(Cut(hidden[0] - 1, shards))
    if growth.redrawn_fraction and hidden:
        pieces.append(Redraw(hidden[0], growth.redrawn_fraction, shards, (key[0], block), key))
    return pieces


def _fresh(row: LabelledShape, growth: DenseToExperts, key: tuple[int, str]) -> tuple[Piece, ...]:
    """The pieces that make a tensor that has no source: a router's weights; zero if it is no matrix."""
    if not row.label.has(Role.READS):
        return (FillWhole(row.shape),)
    drawn = (growth.router_rows.old_size, *row.shape[1:])
    pieces: tuple[Piece, ...] = (FillWhole(drawn, growth.router_std, key),)
    if drawn != row.shape:
        pieces = (*pieces, Copy(0, growth.router_rows))
    return pieces


def table_of(config: ModelConfig, model_class: type[torch.nn.Module]) -> AxesTable:
    """The axes table of the model that a config describes; nothing is allocated, and the table is shared."""
    return _table_of(astuple(config), model_class)  # type: ignore[arg-type] # a class is hashable


@lru_cache(maxsize=64)
def _table_of(shape: tuple[Any, ...], model_class: type[torch.nn.Module]) -> AxesTable:
    with torch.device("meta"):
        return axes_table(model_class(ModelConfig(*shape)))
