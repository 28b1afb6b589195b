"""A chain of pieces, done in few passes over the tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from growlm.growth.growth_rng import Draws
from growlm.growth.transforms.tensor_transforms import Fill, Piece, Selection, matrix_std, select


def chain_weight(pieces: Sequence[Piece], x: Tensor, draws: Draws) -> Tensor:
    """What a chain of pieces does to a weight."""
    for step in _steps(pieces, 0):
        x = step.weight(x, draws)
    return x


def chain_moment(pieces: Sequence[Piece], x: Tensor, power: int) -> Tensor:
    """What a chain of pieces does to a running mean of gradient**power."""
    for step in _steps(pieces, power):
        x = step.moment(x, power)
    return x


def _steps(pieces: Sequence[Piece], power: int) -> Iterator[Piece | _OnePass]:
    """The pieces in order, but selections along different dimensions, and what fills after them, together."""
    group = _OnePass()
    for piece in pieces:
        if not group.takes(piece, power):
            if group.selections:
                yield group
                group = _OnePass()
            if not group.takes(piece, power):
                yield piece
                continue
        group.add(piece)
    if group.selections:
        yield group


@dataclass
class _OnePass:
    """Selections along different dimensions, and the fills between and behind them, which wait for the last."""

    selections: list[Selection] = field(default_factory=list)
    fills: list[tuple[Fill, int]] = field(default_factory=list)
    """Each with the number of selections before it."""

    def takes(self, piece: Piece, power: int) -> bool:
        """Whether it can be done with the others, in a moment of `power` or in the weight (0)."""
        if isinstance(piece, Fill):
            return bool(self.selections)
        if not isinstance(piece, Selection) or piece.inserts:
            return False
        dims = {other.dim for other in self.selections}
        return piece.dim not in dims and all(
            self._can_wait(fill, before, piece, power) for fill, before in self.fills
        )

    def add(self, piece: Piece) -> None:
        """Take it."""
        if isinstance(piece, Fill):
            self.fills.append((piece, len(self.selections)))
        elif isinstance(piece, Selection):
            self.selections.append(piece)

    def weight(self, x: Tensor, draws: Draws) -> Tensor:
        """What they do to a weight."""
        new = select(self.selections, x, 0)
        # Zeros first, for the means that are taken over them: memory that is read before it is written is slow.
        for fill, before in sorted(self.fills, key=lambda item: item[0].kind != "zero"):
            later = self.selections[before:]
            if fill.kind == "random" and later:
                fill.draw(_old_part(new, later), matrix_std(x), draws)
            else:
                fill.weight(new, draws)
        return new

    def moment(self, x: Tensor, power: int) -> Tensor:
        """What they do to a running mean of gradient**power."""
        new = select(self.selections, x, power)
        for fill, _ in self.fills:
            fill.moment(new, power)
        return new

    def _can_wait(self, fill: Fill, before: int, later: Selection, power: int) -> bool:
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
        return is_plain and later.channels.only_appends


def _old_part(x: Tensor, later: Sequence[Selection]) -> Tensor:
    """What was there before selections that only append, a view."""
    for selection in later:
        x = x.narrow(selection.dim, 0, selection.channels.old_size)
    return x
