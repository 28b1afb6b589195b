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
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.fused import apply_to_moment, apply_to_weight
from growlm.growth.transforms.noise import TieBreakingNoise, ZeroSumNoise
from growlm.growth.transforms.reconstruction import Reconstruction, all_finite
from growlm.growth.transforms.scale_factors import ScaleFactors, mark_all_original, unit_factors
from growlm.growth.transforms.tensor_transforms import (
    Copy,
    Fill,
    NewTensor,
    Reinitialize,
    ResetMoments,
    Scale,
    Split,
    TensorTransform,
)
from growlm.growth.transforms.upcycle_transforms import ReinitializeUnits, SplitIntoExperts
from growlm.model.axes import Dim, Label, LabeledShape, Role, axes_table, split_block_name
from growlm.model.config import ModelConfig

AxesTable = Mapping[str, LabeledShape]


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
    filler_write_init: str = "zero"
    filler_read_init: str = "random"
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
class UpcycleSpec:
    """How a dense feed-forward block becomes experts."""

    segments: ChannelMap
    """Which shard of the block's hidden units each expert copies; one shard is the whole block."""
    router_rows: ChannelMap
    """Which drawn row of the router each expert has."""
    router_std: float
    """Of the drawn rows; 0 for zeros."""
    reinitialized_fraction: float = 0.0
    """Of each expert's hidden units, drawn anew."""


@dataclass(frozen=True)
class GrowthSpec:
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
    upcycle: UpcycleSpec | None = None
    """Without it no new tensor may be without a source."""


@dataclass(frozen=True)
class TensorMap:
    """How one new tensor is made."""

    source: str | None
    """The old tensor; None if the new one owes nothing to any."""
    shape: tuple[int, ...]
    transforms: tuple[TensorTransform, ...] = ()

    def grow_weight(self, source: Tensor, rng: GrowthRng) -> Tensor:
        """The new weight, in the source's precision; the source is left as it is.

        Args:
            source: The old weight. Where there is none, any tensor of the precision wanted.
            draws: Random entries.
        """
        return self._as_new_tensor(apply_to_weight(self.transforms, source, rng), source)

    def grow_moment(self, source: Tensor, power: int) -> Tensor:
        """The running mean of gradient**power that the new weight starts with."""
        return self._as_new_tensor(apply_to_moment(self.transforms, source, power), source)

    def scale_factors(self, start: ScaleFactors) -> ScaleFactors:
        """The factors of each entry after the chain, from those of the source."""
        for piece in self.transforms:
            start = piece.transform_factors(start)
        return start

    def reconstruct(
        self,
        grown: Tensor,
        source: Callable[[], Tensor],
        growth_dtype: torch.dtype,
        shared_state: dict[Any, Tensor],
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

        def make(steps: Sequence[TensorTransform], drawn: bool) -> Tensor:
            with GrowthRng(seed=0) if drawn else GrowthRng.zeros() as draws:
                return apply_to_weight(steps, source().to(dtype), draws)

        found = Reconstruction(grown.to(dtype), growth_dtype, make, shared_state)
        if not all_finite(grown):
            found.add_fault("holds NaN or infinity")
            return found
        for place in reversed(range(len(self.transforms))):
            found.earlier_transforms = self.transforms[:place]
            self.transforms[place].verify_and_revert(found)
            if found.is_done:
                return found
        if self.source is not None:
            old = source().to(growth_dtype).to(dtype)
            if not all_finite(old):
                found.add_fault("the old model's tensor holds NaN or infinity")
            found.require_equal(old, "differs from its source")
        return found

    def unconstrained_entries(self, old_shape: Sequence[int], rng: GrowthRng) -> Tensor:
        """Return which entries of the grown tensor may hold any number of their range, a mask.

        Args:
            old_shape: The source's shape.
            draws: Of the growth; its seed says which hidden units were drawn anew.
        """
        mask = torch.zeros(tuple(old_shape), dtype=torch.bool)
        for place, piece in enumerate(self.transforms):
            mask = piece.unconstrained_entries(mask, self.transforms[place + 1 :], rng)
        return mask

    @property
    def resets_moments(self) -> bool:
        """Whether nothing of the source's past remains: the optimizer starts this tensor at step 0."""
        return any(isinstance(piece, NewTensor | ResetMoments) for piece in self.transforms)

    @property
    def keeps_weight(self) -> bool:
        """Whether the new weight is the source, entry by entry."""
        return self.source is not None and all(isinstance(p, ResetMoments) for p in self.transforms)

    @property
    def keeps_moments(self) -> bool:
        """Likewise the moments."""
        return self.source is not None and not self.transforms

    def _as_new_tensor(self, x: Tensor, source: Tensor) -> Tensor:
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
                begins_anew = any(isinstance(piece, NewTensor) for piece in step.transforms)
                pieces = step.transforms if begins_anew else before.transforms + step.transforms
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
            tuple(self._compose_origin(origin) for origin in later.blocks),
            self.lossless and later.lossless,
            self.description + later.description,
            self.old_shapes,
        )

    def scale_factors(
        self, previous: Mapping[str, ScaleFactors] | None = None
    ) -> dict[str, ScaleFactors]:
        """What the growth did to each entry of every new tensor and to its gradient.

        Args:
            before: Factors that old tensors had already, from earlier growths; none if not given.

        Returns:
            By new name; `original` is about this growth alone.
        """
        previous = previous or {}
        found = {}
        for name, tensor_map in self.tensors.items():
            source = tensor_map.source
            if source is None:
                found[name] = unit_factors(tensor_map.shape)
            else:
                start = previous.get(source) or unit_factors(self.old_shapes[source])
                found[name] = tensor_map.scale_factors(mark_all_original(start))
        return found

    def _compose_origin(self, later: BlockOrigin) -> BlockOrigin:
        before = self.blocks[later.source]
        return before if later.kind == "kept" else BlockOrigin(before.source, later.kind)

    def old_block_at(self, new_block: int) -> int | None:
        """The old block whose output the residual stream still holds after `new_block`, in a lossless growth.

        None before the first kept block: there it holds the embeddings.
        """
        kept = [o.source for o in self.blocks[: new_block + 1] if o.kind == "kept"]
        return kept[-1] if kept else None


def derive_growth_map(
    old_config: ModelConfig,
    old_table: AxesTable,
    new_table: AxesTable,
    spec: GrowthSpec,
    operator_index: int,
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
    blocks = spec.blocks or tuple(BlockOrigin(i) for i in range(old_config.n_layers))
    tensors = {
        name: _derive_tensor(name, row, old_table, blocks, spec, operator_index)
        for name, row in new_table.items()
    }
    axes = {axis: growth.channels for axis, growth in spec.axes.items()}
    return GrowthMap(
        old_config,
        spec.config,
        tensors,
        axes,
        blocks,
        spec.lossless,
        spec.description,
        {name: row.shape for name, row in old_table.items()},
    )


def _derive_tensor(
    name: str,
    row: LabeledShape,
    old_table: AxesTable,
    blocks: tuple[BlockOrigin, ...],
    spec: GrowthSpec,
    operator_index: int,
) -> TensorMap:
    block, rest = split_block_name(name)
    origin = None if block is None else blocks[block]

    def in_source_block(rest: str) -> str:
        return rest if origin is None else f"blocks.{origin.source}.{rest}"

    key = (operator_index, name)
    source = in_source_block(rest)
    pieces: list[TensorTransform] = []
    dims = list(enumerate(row.label.dims))
    if source in old_table:
        if old_table[source].label.dims != row.label.dims:
            raise ValueError(f"{source} and {name} have different axes")
    elif (
        row.label.stacked_from is not None and in_source_block(row.label.stacked_from) in old_table
    ):
        source = in_source_block(row.label.stacked_from)
        if spec.upcycle is None:
            raise ValueError(f"{name} is a stack of {source}, which this operator does not make")
        pieces += _upcycle_transforms(row, spec.upcycle, block or 0, key)
        dims = dims[1:]
    elif spec.upcycle is not None:
        return TensorMap(None, row.shape, _new_tensor_transforms(row, spec.upcycle, key))
    else:
        raise ValueError(f"{name} has no source and this operator makes no fresh tensors")

    for position, dim in dims:
        if dim.axis in spec.axes:
            pieces += _axis_transforms(position, dim, spec, row, key)
    if origin is not None and origin.kind in ("identity", "fresh"):
        adds_to_stream = row.label.has(Role.WRITES, "residual")
        if origin.kind == "fresh" and row.label.has(Role.READS) and not adds_to_stream:
            pieces.append(Reinitialize(key))
        pieces.append(NewTensor(row.shape) if adds_to_stream else ResetMoments())
    return TensorMap(source, row.shape, tuple(pieces))


def _axis_transforms(
    position: int, dim: Dim, spec: GrowthSpec, row: LabeledShape, rng_key: tuple[int, str]
) -> list[TensorTransform]:
    growth = spec.axes[dim.axis]
    channels = growth.channels
    if dim.role is Role.READS or row.label.feeds_tied_head:
        pieces: list[TensorTransform] = [Split(position, channels)]
    else:
        pieces = [Copy(position, channels)]
    if channels.has_fillers:
        # A filler gain of zero behind a zero channel would stay dead, so gains are filled with their mean.
        by_role = {Role.READS: growth.filler_read_init, Role.GAIN: "mean", Role.SHIFT: "zero"}
        pieces.append(
            Fill(position, channels, by_role.get(dim.role, growth.filler_write_init), rng_key)
        )
    if dim.role is Role.GAIN and growth.gain_factor != 1.0:
        pieces.append(Scale(growth.gain_factor))
    if spec.noise is not None and _takes_noise(dim, row.label):
        level, alike = spec.noise, _repeated_rows(position, spec, row)
        pieces.append(ZeroSumNoise(position, channels, level.std, level.snr_db, rng_key, alike))
    if spec.tie_breaking_std and dim.role is Role.INDEX and row.label.is_router:
        pieces.append(TieBreakingNoise(channels, spec.tie_breaking_std, rng_key))
    return pieces


def _repeated_rows(position: int, spec: GrowthSpec, row: LabeledShape) -> tuple[int, int] | None:
    """The dimension before `position` whose channels have been copied whole, and the channels of one copy."""
    for other, dim in enumerate(row.label.dims[:position]):
        if dim.role is Role.WRITES and dim.axis in spec.axes:
            return other, spec.axes[dim.axis].channels.period
    return None


def _takes_noise(dim: Dim, label: Label) -> bool:
    """Whether copies along `dim` get equal inputs, or equal gates, so that noise cancels: matrices alone."""
    is_summed_over = dim.role is Role.INDEX and label.has(Role.WRITES, "residual")
    return dim.role is Role.READS or (is_summed_over and label.has(Role.READS))


def _upcycle_transforms(
    row: LabeledShape, spec: UpcycleSpec, block: int, rng_key: tuple[int, str]
) -> list[TensorTransform]:
    """The pieces that make a stack of experts of a dense block's tensor."""
    shards = spec.segments
    hidden = [place for place, dim in enumerate(row.label.dims) if dim.axis == "hidden"]
    if shards.old_size == 1 or not hidden:
        shards = ChannelMap.with_equal_shares(1, torch.zeros(shards.new_size, dtype=torch.long))
        pieces: list[TensorTransform] = [Copy(0, shards, inserts_dim=True)]
    else:
        scaled = row.label.has(Role.READS, "hidden")  # each shard has its part of the gate
        pieces = [Scale(shards.old_size)] if scaled else []
        pieces.append(SplitIntoExperts(hidden[0] - 1, shards))
    if spec.reinitialized_fraction and hidden:
        pieces.append(
            ReinitializeUnits(
                hidden[0], spec.reinitialized_fraction, shards, (rng_key[0], block), rng_key
            )
        )
    return pieces


def _new_tensor_transforms(
    row: LabeledShape, spec: UpcycleSpec, rng_key: tuple[int, str]
) -> tuple[TensorTransform, ...]:
    """The pieces that make a tensor that has no source: a router's weights; zero if it is no matrix."""
    if not row.label.has(Role.READS):
        return (NewTensor(row.shape),)
    drawn = (spec.router_rows.old_size, *row.shape[1:])
    pieces: tuple[TensorTransform, ...] = (NewTensor(drawn, spec.router_std, rng_key),)
    if drawn != row.shape:
        pieces = (*pieces, Copy(0, spec.router_rows))
    return pieces


def axes_table_from_config(config: ModelConfig, model_class: type[torch.nn.Module]) -> AxesTable:
    """The axes table of the model that a config describes; nothing is allocated, and the table is shared."""
    return _cached_axes_table(astuple(config), model_class)  # type: ignore[arg-type] # a class is hashable


@lru_cache(maxsize=64)
def _cached_axes_table(shape: tuple[Any, ...], model_class: type[torch.nn.Module]) -> AxesTable:
    with torch.device("meta"):
        return axes_table(model_class(ModelConfig(*shape)))
