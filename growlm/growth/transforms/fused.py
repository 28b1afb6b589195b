"""Apply a sequence of transforms in few passes over the tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.matrix_std import compute_matrix_std
from growlm.growth.transforms.tensor_transforms import (
    Fill,
    Selection,
    TensorTransform,
    select_in_one_pass,
)


def apply_to_weight(transforms: Sequence[TensorTransform], x: Tensor, rng: GrowthRng) -> Tensor:
    """Apply a sequence of transforms to a weight."""
    for step in _fuse(transforms, 0):
        x = step.transform_weight(x, rng)
    return x


def apply_to_moment(transforms: Sequence[TensorTransform], x: Tensor, power: int) -> Tensor:
    """Apply a sequence of transforms to a running mean of gradient**power."""
    for step in _fuse(transforms, power):
        x = step.transform_moment(x, power)
    return x


def _fuse(
    transforms: Sequence[TensorTransform], power: int
) -> Iterator[TensorTransform | _FusedSelections]:
    """Yield the transforms in order, with selections along different dimensions and later fills combined."""
    group = _FusedSelections(power)
    for transform in transforms:
        if transform.fuse_into(group):
            continue
        if group.selections:
            yield group
            group = _FusedSelections(power)
            if transform.fuse_into(group):
                continue
        yield transform
    if group.selections:
        yield group


@dataclass
class _FusedSelections:
    """Selections along different dimensions, and their fills, deferred until after the last selection.

    Args:
        power: Power of the moment that they are applied to; 0 for the weight.
    """

    power: int
    selections: list[Selection] = field(default_factory=list)
    fills: list[tuple[Fill, int]] = field(default_factory=list)
    """Each fill with the number of selections before it."""

    def add_selection(self, selection: Selection) -> bool:
        """Add a selection, unless it needs a pass of its own."""
        fits = all(selection.dim != other.dim for other in self.selections) and all(
            self._can_defer(fill, before, selection) for fill, before in self.fills
        )
        if fits:
            self.selections.append(selection)
        return fits

    def add_fill(self, fill: Fill) -> bool:
        """Add a fill if there are selections to defer it behind."""
        if self.selections:
            self.fills.append((fill, len(self.selections)))
        return bool(self.selections)

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """Apply all transforms to a weight."""
        new = select_in_one_pass(self.selections, x, 0)
        # Zeros come first because means are computed over them: reading memory before it is written is slow.
        for fill, before in sorted(self.fills, key=lambda item: item[0].kind != "zero"):
            later = self.selections[before:]
            if fill.kind == "random" and later:
                fill.fill_random(_narrow_to_old(new, later), compute_matrix_std(x), rng)
            else:
                fill.transform_weight(new, rng)
        return new

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """Apply all transforms to a running mean of gradient**power."""
        new = select_in_one_pass(self.selections, x, power)
        for fill, _ in self.fills:
            fill.transform_moment(new, power)
        return new

    def _can_defer(self, fill: Fill, before: int, later: Selection) -> bool:
        """Return whether a fill gives the same result after a later selection, along another dimension.

        Zeros and means do. Random values do if that selection leaves them where they are, unscaled: their
        standard deviation is that of the copied entries, which must be computed from the weight before the
        selections. In a moment, `random` fills with the mean, and is not deferred: the mean would be rounded
        differently from the unfused one.
        """
        if fill.kind != "random":
            return True
        if self.power:
            return False
        own = self.selections[0]
        is_plain = before == 1 and own.dim == fill.dim and not own.share_exponent(0)
        return is_plain and later.channels.is_append_only


def _narrow_to_old(x: Tensor, later: Sequence[Selection]) -> Tensor:
    """Return a view of what was there before selections that only append."""
    for selection in later:
        x = x.narrow(selection.dim, 0, selection.channels.old_size)
    return x
