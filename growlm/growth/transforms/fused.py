"""A chain of pieces, done in few passes over the tensor."""

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
    """What a chain of pieces does to a weight."""
    for step in _fuse(transforms, 0):
        x = step.transform_weight(x, rng)
    return x


def apply_to_moment(transforms: Sequence[TensorTransform], x: Tensor, power: int) -> Tensor:
    """What a chain of pieces does to a running mean of gradient**power."""
    for step in _fuse(transforms, power):
        x = step.transform_moment(x, power)
    return x


def _fuse(
    transforms: Sequence[TensorTransform], power: int
) -> Iterator[TensorTransform | _FusedSelections]:
    """The pieces in order, but selections along different dimensions, and what fills after them, together."""
    group = _FusedSelections()
    for piece in transforms:
        if not group.accepts(piece, power):
            if group.selections:
                yield group
                group = _FusedSelections()
            if not group.accepts(piece, power):
                yield piece
                continue
        group.add(piece)
    if group.selections:
        yield group


@dataclass
class _FusedSelections:
    """Selections along different dimensions, and the fills between and behind them, which wait for the last."""

    selections: list[Selection] = field(default_factory=list)
    fills: list[tuple[Fill, int]] = field(default_factory=list)
    """Each with the number of selections before it."""

    def accepts(self, transform: TensorTransform, power: int) -> bool:
        """Whether it can be done with the others, in a moment of `power` or in the weight (0)."""
        if isinstance(transform, Fill):
            return bool(self.selections)
        if not isinstance(transform, Selection) or transform.inserts_dim:
            return False
        dims = {other.dim for other in self.selections}
        return transform.dim not in dims and all(
            self._can_defer(fill, before, transform, power) for fill, before in self.fills
        )

    def add(self, transform: TensorTransform) -> None:
        """Take it."""
        if isinstance(transform, Fill):
            self.fills.append((transform, len(self.selections)))
        elif isinstance(transform, Selection):
            self.selections.append(transform)

    def transform_weight(self, x: Tensor, rng: GrowthRng) -> Tensor:
        """What they do to a weight."""
        new = select_in_one_pass(self.selections, x, 0)
        # Zeros first, for the means that are taken over them: memory that is read before it is written is slow.
        for fill, before in sorted(self.fills, key=lambda item: item[0].kind != "zero"):
            later = self.selections[before:]
            if fill.kind == "random" and later:
                fill.fill_random(_narrow_to_old(new, later), compute_matrix_std(x), rng)
            else:
                fill.transform_weight(new, rng)
        return new

    def transform_moment(self, x: Tensor, power: int) -> Tensor:
        """What they do to a running mean of gradient**power."""
        new = select_in_one_pass(self.selections, x, power)
        for fill, _ in self.fills:
            fill.transform_moment(new, power)
        return new

    def _can_defer(self, fill: Fill, before: int, later: Selection, power: int) -> bool:
        """Whether a fill is the same after a later selection: zeros and means are, along another dimension.

        Random values are if that selection leaves them where they are, unscaled. Their deviation is that of the
        copied entries, and it must be had from the weight before the selections. In a moment they do not wait: a
        mean taken there would be rounded otherwise than it always was.
        """
        if fill.kind != "random":
            return True
        if power:
            return False
        own = self.selections[0]
        is_plain = before == 1 and own.dim == fill.dim and not own.share_exponent(0)
        return is_plain and later.channels.is_append_only


def _narrow_to_old(x: Tensor, later: Sequence[Selection]) -> Tensor:
    """What was there before selections that only append, a view."""
    for selection in later:
        x = x.narrow(selection.dim, 0, selection.channels.old_size)
    return x
