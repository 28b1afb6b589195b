"""Derive what happens to each tensor from what happens to axes, blocks and experts.

An operator describes its effect as a `GrowthSpec`. `derive_growth_map` reads the axes tables of the model
before and after, and records the source and the transforms of every new tensor in a `GrowthMap`. Live models,
optimizer moments, files and the verification all use that map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_protocol import AxesTable
from growlm.growth.transforms.fused import apply_to_moment, apply_to_weight
from growlm.growth.transforms.half_precision import is_half
from growlm.growth.transforms.noise import TieBreakingNoise, ZeroSumNoise
from growlm.growth.transforms.reconstruction import Reconstruction, all_finite
from growlm.growth.transforms.rounding import (
    InexactTensor,
    WeightDtypes,
    describe_rounding,
    dtype_of_tensor,
    expected_logit_change,
)
from growlm.growth.transforms.scale_factors import ScaleFactors, mark_all_original, unit_factors
from growlm.growth.transforms.tensor_transforms import (
    Copy,
    Fill,
    NewTensor,
    OffsetTransforms,
    Reinitialize,
    ResetMoments,
    Scale,
    Split,
    TensorTransform,
)
from growlm.growth.transforms.upcycle_transforms import ReinitializeUnits, SplitIntoExperts
from growlm.model.axes import Dim, Label, LabeledShape, Role
from growlm.model.config import ModelConfig


@dataclass(frozen=True)
class AxisGrowth:
    """The change of one axis.

    Args:
        channels: Map from new to old channels.
        filler_write_init: Content of rows that write a filler: `zero`, `random`, or the `mean` over the other
            rows.
        filler_read_init: Content of columns that read a filler: `random` or `zero`.
        gain_factor: Factor that multiplies the gain of norms over the axis.
        embedding_factor: Factor that multiplies the token embeddings, where the model multiplies them by a factor
            of its width; the norm before a tied head is divided by it.
    """

    channels: ChannelMap
    filler_write_init: str = "zero"
    filler_read_init: str = "random"
    gain_factor: float = 1.0
    embedding_factor: float = 1.0


@dataclass(frozen=True)
class BlockOrigin:
    """The origin of a block of the grown model.

    Args:
        source: Index of the old block.
        kind: `kept`: the old block itself; `identity`: a second copy of it whose output projections are zero;
            `fresh`: as `identity`, with its other matrices reinitialized; `copy`: a plain second copy.
    """

    source: int
    kind: str = "kept"


@dataclass(frozen=True)
class NoiseLevel:
    """The strength of the zero-sum noise on copies; see `ZeroSumNoise`."""

    std: float
    snr_db: float | None = None


MAX_NOISE_STD = 10.0
"""The largest standard deviation that operators allow. It is assumed for random numbers of unknown deviation where
a growth is inferred; zero-sum noise is capped at a matrix's own standard deviation anyway."""


@dataclass(frozen=True)
class UpcycleSpec:
    """The change of a dense feed-forward block into experts."""

    segments: ChannelMap
    """Map from experts to shards of the block's hidden units; a single shard is the whole block."""
    router_rows: ChannelMap
    """Map from experts to random rows of the router."""
    router_std: float
    """Standard deviation of the random rows; 0 for zeros."""
    reinitialized_fraction: float = 0.0
    """Fraction of each expert's hidden units that is reinitialized."""


@dataclass(frozen=True)
class GrowthSpec:
    """The effect of an operator, in terms of axes, blocks and experts."""

    config: ModelConfig
    """Config of the grown model."""
    description: list[str]
    """What was done, one line each, for people."""
    lossless: bool = True
    axes: Mapping[str, AxisGrowth] = field(default_factory=dict)
    blocks: tuple[BlockOrigin, ...] | None = None
    """One origin per block of the grown model; None if blocks stay as they are."""
    noise: NoiseLevel | None = None
    """Strength of the zero-sum noise on copies; None for none."""
    tie_breaking_std: float = 0.0
    """Standard deviation of the noise on copies of a router's rows."""
    upcycle: UpcycleSpec | None = None
    """How blocks become experts; if None, every new tensor must have a source."""


@dataclass(frozen=True)
class TensorMap:
    """The recipe of one new tensor: its source and the transforms applied to it."""

    source: str | None
    """Name of the old tensor; None if the new one is not made from any."""
    shape: tuple[int, ...]
    transforms: tuple[TensorTransform, ...] = ()

    def grow_weight(self, source: Tensor, rng: GrowthRng) -> Tensor:
        """Return the new weight, in the source's precision; the source is left as it is.

        Args:
            source: Old weight. Where there is none, any tensor of the wanted precision.
            rng: Source of random entries.
        """
        return self._as_new_tensor(apply_to_weight(self.transforms, source, rng), source)

    def grow_moment(self, source: Tensor, power: int) -> Tensor:
        """Return the running mean of gradient**power that the new weight starts with."""
        return self._as_new_tensor(apply_to_moment(self.transforms, source, power), source)

    def scale_factors(self, start: ScaleFactors) -> ScaleFactors:
        """Return the scale factors of each entry after all transforms, given those of the source."""
        for transform in self.transforms:
            start = transform.transform_factors(start)
        return start

    def reconstruct(
        self,
        grown: Tensor,
        source: Callable[[], Tensor],
        growth_dtype: torch.dtype,
        shared_state: dict[Any, Tensor],
    ) -> Reconstruction:
        """Undo the transforms of a grown tensor, and check what each of them guarantees.

        Args:
            grown: Grown tensor.
            source: Function that returns the old tensor; called once the grown one has been reduced to its
                size, or by a transform that draws numbers like those of the source.
            growth_dtype: Precision that the tensor was grown in, if it has been converted since.
            shared_state: Information shared between the tensors of one model; empty at first.

        Returns:
            The source as reconstructed from the grown tensor, with all faults that were found.
        """
        dtype = torch.promote_types(grown.dtype, torch.float32)

        def rebuild(transforms: Sequence[TensorTransform], with_random: bool) -> Tensor:
            with GrowthRng(seed=0) if with_random else GrowthRng.zeros() as rng:
                return apply_to_weight(transforms, source().to(dtype), rng)

        reconstruction = Reconstruction(grown.to(dtype), growth_dtype, rebuild, shared_state)
        if not all_finite(grown):
            reconstruction.add_fault("holds NaN or infinity")
            return reconstruction
        for index in reversed(range(len(self.transforms))):
            reconstruction.earlier_transforms = self.transforms[:index]
            self.transforms[index].verify_and_revert(reconstruction)
            if reconstruction.is_done:
                return reconstruction
        if self.source is not None:
            old = source().to(growth_dtype).to(dtype)
            if not all_finite(old):
                reconstruction.add_fault("the old model's tensor holds NaN or infinity")
            reconstruction.require_equal(old, "differs from its source")
        return reconstruction

    def unconstrained_entries(self, old_shape: Sequence[int], rng: GrowthRng) -> Tensor:
        """Return a mask of the entries that the weight check compares with a range only: those drawn at random.

        Args:
            old_shape: Shape of the source.
            rng: Random state of the growth; its seed decides which hidden units were reinitialized.
        """
        mask = torch.zeros(tuple(old_shape), dtype=torch.bool)
        for index, transform in enumerate(self.transforms):
            mask = transform.unconstrained_entries(mask, self.transforms[index + 1 :], rng)
        return mask

    def describe_half_precision_rounding(self) -> str | None:
        """Return what is rounded if the tensor is in half precision; None if it is exact there."""
        found = (step.describe_half_precision_rounding() for step in self.transforms)
        return ", ".join(dict.fromkeys(filter(None, found))) or None

    @property
    def resets_moments(self) -> bool:
        """Whether the optimizer starts this tensor at step 0, without any state of the source."""
        return any(transform.resets_moments for transform in self.transforms)

    @property
    def keeps_weight(self) -> bool:
        """Whether the new weight equals the source."""
        return self.source is not None and all(step.keeps_weight for step in self.transforms)

    @property
    def keeps_moments(self) -> bool:
        """Whether the new moments equal those of the source."""
        return self.source is not None and not self.transforms

    def _as_new_tensor(self, x: Tensor, source: Tensor) -> Tensor:
        if tuple(x.shape) != self.shape:
            raise AssertionError(f"grown to {tuple(x.shape)}, expected {self.shape}")
        return x.clone() if x is source else x.contiguous()


@dataclass(frozen=True)
class GrowthMap:
    """The complete effect of a growth, as data."""

    old_config: ModelConfig
    new_config: ModelConfig
    tensors: dict[str, TensorMap]
    """Tensor maps by new name."""
    axes: dict[str, ChannelMap]
    """Channel maps of the axes that changed."""
    blocks: tuple[BlockOrigin, ...]
    """One origin per new block."""
    lossless: bool
    description: list[str]
    old_shapes: dict[str, tuple[int, ...]]
    """Shapes by old name."""

    @staticmethod
    def identity(config: ModelConfig, table: AxesTable) -> GrowthMap:
        """Return the growth map that changes nothing."""
        blocks = tuple(BlockOrigin(i) for i in range(config.n_layers))
        tensors = {name: TensorMap(name, row.shape) for name, row in table.items()}
        shapes = {name: row.shape for name, row in table.items()}
        return GrowthMap(config, config, tensors, {}, blocks, True, [], shapes)

    def then(self, later: GrowthMap) -> GrowthMap:
        """Return this growth followed by another as one map, with all transforms joined."""
        tensors = {}
        for name, step in later.tensors.items():
            if step.source is not None:
                before = self.tensors[step.source]
                is_new = any(transform.replaces_source for transform in step.transforms)
                transforms = step.transforms if is_new else before.transforms + step.transforms
                step = TensorMap(before.source, step.shape, transforms)
            tensors[name] = step
        axes = dict(self.axes)
        for axis, channels in later.axes.items():
            axes[axis] = axes[axis].then(channels) if axis in axes else channels
        # A split block has a different map of hidden units in every expert, so that axis has no single map.
        sizes = later.new_config.axis_sizes()
        axes = {a: c for a, c in axes.items() if c.new_size == sizes.get(a, c.new_size)}
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
        """Return what the growth did to each entry of every new tensor and to its gradient.

        Args:
            previous: Factors of the old tensors from earlier growths; none if not given.

        Returns:
            Factors by new name; `original` is about this growth alone.
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

    def inexact_tensors(self, dtype: WeightDtypes) -> list[InexactTensor]:
        """Return the tensors that rounding changes in half precision, each with the reason.

        Args:
            dtype: Precision of the weights: one for all, or one for each tensor of the grown model.

        Returns:
            The tensors, in the order of the model; none in fp32 and fp64, where losslessness is a tolerance.
        """
        found = []
        for name, tensor_map in self.tensors.items():
            own = dtype_of_tensor(dtype, name)
            reason = tensor_map.describe_half_precision_rounding() if is_half(own) else None
            found += [InexactTensor(name, reason, own)] if reason else []
        return found

    def describe_rounding(self, dtype: WeightDtypes) -> list[str]:
        """Return what the growth rounds in half precision, one line each, for people.

        Args:
            dtype: Precision of the weights: one for all, or one for each tensor of the grown model.

        Returns:
            The lines; none in fp32 and fp64.
        """
        dtypes = {dtype_of_tensor(dtype, name) for name in self.tensors}
        return describe_rounding(self.inexact_tensors(dtype), dtypes, self.old_config.is_moe)

    def expected_logit_change(self, dtype: WeightDtypes) -> float:
        """Return by how much rounding in half precision is expected to move the logits.

        Args:
            dtype: Precision of the weights: one for all, or one for each tensor of the grown model.

        Returns:
            A share of the logits' standard deviation; 0 if nothing is rounded.
        """
        return expected_logit_change(self.inexact_tensors(dtype), self.old_config.is_moe)

    def with_rounding(self, dtype: WeightDtypes) -> GrowthMap:
        """Return the map with what half precision rounds at the end of its description."""
        return replace(self, description=self.description + self.describe_rounding(dtype))

    def _compose_origin(self, later: BlockOrigin) -> BlockOrigin:
        before = self.blocks[later.source]
        return before if later.kind == "kept" else BlockOrigin(before.source, later.kind)

    def old_block_at(self, new_block: int) -> int | None:
        """Return the old block whose output the residual stream equals after `new_block`, in a lossless growth.

        None before the first kept block: there the stream holds the embeddings.
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
    """Return the growth map of one operator.

    Args:
        old_config: Config of the model before.
        old_table: Axes table of the model before.
        new_table: Axes table of the grown model.
        spec: Effect of the operator.
        operator_index: Index of the operator in the sequence; part of the seed of its random numbers.

    Raises:
        ValueError: If a new tensor has no source and the operator makes no new ones, if source and target do not
            have the same axes, or if a size is not what the operator makes of it; names the tensor.
    """
    blocks = spec.blocks or tuple(BlockOrigin(i) for i in range(old_config.n_layers))
    if "residual" in spec.axes and old_config.tie_embeddings:
        _check_tied_head(old_table)
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
    position = row.position
    origin = None if position is None else blocks[position.index]

    def in_source_block(name_inside: str) -> str:
        if position is None or origin is None:
            return name_inside
        return position.name_at(origin.source, name_inside)

    key = (operator_index, name)
    source = in_source_block(name if position is None else position.name)
    stacked_from = row.label.stacked_from
    transforms: list[TensorTransform] = []
    dims = list(enumerate(row.label.dims))
    if source in old_table:
        _check_sizes(name, row, source, old_table[source], spec)
    elif stacked_from is not None and in_source_block(stacked_from) in old_table:
        source = in_source_block(stacked_from)
        if spec.upcycle is None:
            raise ValueError(f"{name} is a stack of {source}, and this operator makes no stacks")
        transforms += _upcycle_transforms(row, spec.upcycle, row.block or 0, key)
        dims = dims[1:]
    elif spec.upcycle is not None and _can_be_new(row.label):
        return TensorMap(None, row.shape, _new_tensor_transforms(row, spec.upcycle, key))
    else:
        dense = stacked_from and in_source_block(stacked_from)
        raise ValueError(f"{name} {_explain_no_source(row, spec, dense)}")

    for place, dim in dims:
        if dim.axis in spec.axes:
            _check_new_size(name, dim.axis, row.shape[place], spec)
            transforms += _axis_transforms(place, dim, spec, row, key)
    if row.label.offset and not all(isinstance(each, Copy | Fill) for each in transforms):
        transforms = [OffsetTransforms(row.label.offset, tuple(transforms))]
    if origin is not None and origin.kind in ("identity", "fresh"):
        adds_to_stream = row.label.adds_to_stream
        if origin.kind == "fresh" and row.label.has(Role.READS) and not adds_to_stream:
            transforms.append(Reinitialize(key))
        nothing = NewTensor(row.shape, value=0.0 - row.label.offset)  # not -0.0
        transforms.append(nothing if adds_to_stream else ResetMoments())
    return TensorMap(source, row.shape, tuple(transforms))


def _explain_no_source(row: LabeledShape, spec: GrowthSpec, dense: str | None) -> str:
    """Return why a new tensor cannot be made from the old model.

    Args:
        row: Label and place of the tensor.
        spec: Effect of the operator.
        dense: Name that the parameter it is stacked from would have; None if it is not labeled so.
    """
    if dense is not None and spec.upcycle is not None:
        reason = (
            f"is labeled stacked_from={row.label.stacked_from!r}, and the old model has no {dense}"
        )
    elif spec.upcycle is not None:
        reason = "has no source in the old model; a stack of experts needs the label stacked_from"
    else:
        reason = "has no source, and this operator makes no new tensors"
    if row.position is None and (spec.blocks or dense):
        reason += (
            "; if it is in a repeated block, mark the container of the blocks with label_blocks"
        )
    return reason


def _can_be_new(label: Label) -> bool:
    """Return whether a parameter of a mixture may have no source: a router's, which only chooses experts."""
    return label.has(Role.INDEX, "experts") and not label.has(Role.WRITES)


def _check_tied_head(table: AxesTable) -> None:
    """Check that the norm before a tied head is labeled: growth scales it in place of the head's columns."""
    if not any(row.label.feeds_tied_head for row in table.values()):
        embedding = next((name for name, row in table.items() if row.label.is_lookup), "the head")
        raise ValueError(
            f"{embedding} is the head's matrix, too (tie_embeddings), but no norm is labeled "
            "feeds_tied_head=True: label the one before the head, or state tie_embeddings=False"
        )


def _check_sizes(
    name: str, row: LabeledShape, source: str, old: LabeledShape, spec: GrowthSpec
) -> None:
    """Check that a tensor has the axes of its source, and its size on each axis that does not grow."""
    if old.label.dims != row.label.dims:
        raise ValueError(f"{source} and {name} have different axes")
    for dim, size, old_size in zip(row.label.dims, row.shape, old.shape, strict=True):
        grown = spec.axes.get(dim.axis)
        if grown is None and size != old_size:
            raise ValueError(
                f"{name} has {size} channels on axis {dim.axis} in the grown model and {old_size} before, but the "
                "operator does not grow that axis"
            )
        if grown is not None and old_size != grown.channels.old_size:
            raise ValueError(
                f"{source} has {old_size} channels on axis {dim.axis}, but the operator grows "
                f"{grown.channels.old_size}"
            )


def _check_new_size(name: str, axis: str, size: int, spec: GrowthSpec) -> None:
    new_size = spec.axes[axis].channels.new_size
    if size != new_size:
        raise ValueError(
            f"{name} has {size} channels on axis {axis} in the grown model, and the operator makes {new_size}; "
            "the model must be built with the size that the operator's config has"
        )


def _axis_transforms(
    position: int, dim: Dim, spec: GrowthSpec, row: LabeledShape, rng_key: tuple[int, str]
) -> list[TensorTransform]:
    growth = spec.axes[dim.axis]
    channels = growth.channels
    if dim.role is Role.READS or row.label.feeds_tied_head:
        transforms: list[TensorTransform] = [Split(position, channels)]
    else:
        transforms = [Copy(position, channels)]
    if channels.has_fillers:
        # A gain of zero on a filler channel of zero would never train, so gains are filled with their mean.
        by_role = {Role.READS: growth.filler_read_init, Role.GAIN: "mean", Role.SHIFT: "zero"}
        kind = by_role.get(dim.role, growth.filler_write_init)
        is_subtracted = kind == "mean" and dim.role is not Role.GAIN
        transforms.append(Fill(position, channels, kind, rng_key, is_subtracted))
    factor = growth.gain_factor if dim.role is Role.GAIN else 1.0
    if row.label.feeds_tied_head:
        factor /= growth.embedding_factor
    elif row.label.has(Role.INDEX, "vocabulary"):
        factor *= growth.embedding_factor
    if factor != 1.0:
        transforms.append(Scale(factor))
    if spec.noise is not None and _takes_noise(dim, row.label):
        level, repeated = spec.noise, _repeated_rows(position, spec, row)
        transforms.append(
            ZeroSumNoise(position, channels, level.std, level.snr_db, rng_key, repeated)
        )
    if spec.tie_breaking_std and dim.role is Role.INDEX and row.label.is_router:
        transforms.append(TieBreakingNoise(channels, spec.tie_breaking_std, rng_key))
    return transforms


def _repeated_rows(position: int, spec: GrowthSpec, row: LabeledShape) -> tuple[int, int] | None:
    """Return the earlier dimension whose channels were copied whole, and the size of one copy, or None."""
    for other, dim in enumerate(row.label.dims[:position]):
        if dim.role is Role.WRITES and dim.axis in spec.axes:
            return other, spec.axes[dim.axis].channels.period
    return None


def _takes_noise(dim: Dim, label: Label) -> bool:
    """Return whether noise on the copies along `dim` cancels in a matrix: they get equal inputs or equal gates."""
    is_summed_over = dim.role is Role.INDEX and label.has(Role.WRITES, "residual")
    return dim.role is Role.READS or (is_summed_over and label.has(Role.READS))


def _upcycle_transforms(
    row: LabeledShape, spec: UpcycleSpec, block: int, rng_key: tuple[int, str]
) -> list[TensorTransform]:
    """Return the transforms that turn a dense block's tensor into a stack of experts."""
    shards = spec.segments
    hidden = [index for index, dim in enumerate(row.label.dims) if dim.axis == "hidden"]
    if shards.old_size == 1 or not hidden:
        shards = ChannelMap.with_equal_shares(1, torch.zeros(shards.new_size, dtype=torch.long))
        transforms: list[TensorTransform] = [Copy(0, shards, inserts_dim=True)]
    else:
        scaled = row.label.has(Role.READS, "hidden")  # each shard gets a part of the gate only
        transforms = [Scale(shards.old_size)] if scaled else []
        transforms.append(SplitIntoExperts(hidden[0] - 1, shards))
    if spec.reinitialized_fraction and hidden:
        transforms.append(
            ReinitializeUnits(
                hidden[0], spec.reinitialized_fraction, shards, (rng_key[0], block), rng_key
            )
        )
    return transforms


def _new_tensor_transforms(
    row: LabeledShape, spec: UpcycleSpec, rng_key: tuple[int, str]
) -> tuple[TensorTransform, ...]:
    """Return the transforms of a tensor without a source: a router's weights, or zeros if it is not a matrix."""
    if not row.label.has(Role.READS):
        return (NewTensor(row.shape),)
    shape = (spec.router_rows.old_size, *row.shape[1:])
    transforms: tuple[TensorTransform, ...] = (NewTensor(shape, spec.router_std, rng_key),)
    if shape != row.shape:
        transforms = (*transforms, Copy(0, spec.router_rows))
    return transforms
