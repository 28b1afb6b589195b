"""Apply a sequence of transforms in few passes over the tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.tensor_transforms import (
    Fill,
    Selection,
    TensorTransform,
    compute_matrix_std,
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
    group = _FusedSelections()
    for transform in transforms:
        if not group.accepts(transform, power):
            if group.selections:
                yield group
                group = _FusedSelections()
            if not group.accepts(transform, power):
                yield transform
                continue
        group.add(transform)
    if group.selections:
        yield group


@dataclass
class _FusedSelections:
    """Selections along different dimensions, and their fills, deferred until after the last selection."""

    selections: list[Selection] = field(default_factory=list)
    fills: list[tuple[Fill, int]] = field(default_factory=list)
    """Each fill with the number of selections before it."""

    def accepts(self, transform: TensorTransform, power: int) -> bool:
        """Return whether a transform can be fused with the others, for a moment of `power` or the weight (0)."""
        if isinstance(transform, Fill):
            return bool(self.selections)
        if not isinstance(transform, Selection) or transform.inserts_dim:
            return False
        dims = {other.dim for other in self.selections}
        return transform.dim not in dims and all(
            self._can_defer(fill, before, transform, power) for fill, before in self.fills
        )

    def add(self, transform: TensorTransform) -> None:
        if isinstance(transform, Fill):
            self.fills.append((transform, len(self.selections)))
        elif isinstance(transform, Selection):
            self.selections.append(transform)

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

    def _can_defer(self, fill: Fill, before: int, later: Selection, power: int) -> bool:
        """Return whether a fill gives the same result after a later selection, along another dimension.

        Zeros and means do. Random values do if that selection leaves them where they are, unscaled: their
        standard deviation is that of the copied entries, which must be computed from the weight before the
        selections. In a moment, `random` fills with the mean, and is not deferred: the mean would be rounded
        differently from the unfused one.
        """
        if fill.kind != "random":
            return True
        if power:
            return False
        own = self.selections[0]
        is_plain = before == 1 and own.dim == fill.dim and not own.share_exponent(0)
        return is_plain and later.channels.is_append_only


def _narrow_to_old(x: Tensor, later: Sequence[Selection]) -> Tensor:
    """Return a view of what was there before selections that only append."""
    for selection in later:
        x = x.narrow(selection.dim, 0, selection.channels.old_size)
    return x
