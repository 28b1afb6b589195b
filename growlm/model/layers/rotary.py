"""Compute and apply rotary position embeddings (RoPE; Su et al. 2021, arXiv 2104.09864).

Shapes: B batch, T time, C channels of a head, R of them rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from growlm.model.config import ModelConfig
from growlm.model.layers.document_masks import document_lengths
from growlm.model.layers.rope_scaling import scale_frequencies

Table = tuple[Tensor, Tensor]
"""Cosines and sines of some positions, each (T, R/2), or (B, 1, T, R/2) where sequences have their own."""


class RotaryTables:
    """The cosines and sines that each block rotates queries and keys with.

    Args:
        config: Config of the model.
        full: Table of the blocks that attend to all earlier positions.
        window: Table of the blocks with a window.
    """

    def __init__(self, config: ModelConfig, full: Table, window: Table) -> None:
        self._config, self._full, self._window = config, full, window

    @staticmethod
    def compute(
        length: int, config: ModelConfig, like: Tensor, sequence_length: int | None = None
    ) -> RotaryTables:
        """Compute the tables of positions 0 to `length`.

        Args:
            length: Number of positions.
            config: Config of the model.
            like: Tensor on the device of the result; if it is in fp64, the result is, too.
            sequence_length: Length of the sequences, which `longrope` depends on; `length` if not given.
        """
        full = rotary_tables(length, config, like, sequence_length)
        if config.rope.window_theta is None:
            return RotaryTables(config, full, full)
        window = rotary_tables(length, config, like, with_window=True)
        return RotaryTables(config, full, window)

    @staticmethod
    def compute_at(positions: Tensor, config: ModelConfig, like: Tensor) -> RotaryTables:
        """Compute the tables of packed documents.

        Args:
            positions: Position of each token in its document, (B, T). `longrope` depends on the document's length.
            config: Config of the model.
            like: As for `compute`.
        """
        length, scaling = positions.shape[1], config.rope.scaling
        if not scaling.is_long(length):
            tables = RotaryTables.compute(length, config, like)
            return tables.map(lambda table: table[positions].unsqueeze(1))
        is_long = (document_lengths(positions) > scaling.original_max_seq_len).long()
        short = RotaryTables.compute(length, config, like, sequence_length=1)
        both = short.stack(RotaryTables.compute(length, config, like))
        return both.map(lambda tables: tables[is_long, positions].unsqueeze(1))

    def map(self, function: Callable[[Tensor], Tensor]) -> RotaryTables:
        """Return the tables with a function applied to each tensor."""
        full = function(self._full[0]), function(self._full[1])
        if self._window is self._full:
            return RotaryTables(self._config, full, full)
        window = function(self._window[0]), function(self._window[1])
        return RotaryTables(self._config, full, window)

    def stack(self, other: RotaryTables) -> RotaryTables:
        """Return tables whose tensors have those of both along a new first dimension."""
        full, window = (
            (torch.stack((own[0], others[0])), torch.stack((own[1], others[1])))
            for own, others in ((self._full, other._full), (self._window, other._window))
        )
        return RotaryTables(self._config, full, window)

    def select(self, block: int) -> Table:
        """Return the table of a block."""
        return self._full if self._config.block_window(block) is None else self._window


def rotary_tables(
    length: int,
    config: ModelConfig,
    like: Tensor,
    sequence_length: int | None = None,
    with_window: bool = False,
) -> Table:
    """Compute cosines and sines of the rotary angles of positions 0 to `length`, each (length, R/2).

    They are computed at every forward pass in at least fp32: a buffer would be one more tensor for growth,
    sharding and checkpoints to handle, and would save only microseconds.

    Args:
        length: Number of positions.
        config: Config of the model.
        like: Tensor on the device of the result; if it is in fp64, the result is, too.
        sequence_length: Length of the sequences; `length` if not given.
        with_window: Whether for blocks with a window, if those have frequencies of their own.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    size, rope = config.rotary_dim, config.rope
    exponents = torch.arange(0, size, 2, device=like.device, dtype=dtype) / size
    if with_window and rope.window_theta is not None:
        frequencies, factor = rope.window_theta**-exponents, 1.0
    else:
        frequencies, factor = scale_frequencies(
            rope.scaling, rope.theta**-exponents, rope.theta, sequence_length or length
        )
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = torch.outer(positions, frequencies)
    if factor == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * factor, angles.sin() * factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the channel pairs (i, i + R/2) of x; channels from R on are left as they are.

    Args:
        x: (B, heads, T, C).
        cos: (T, R/2), or (B, 1, T, R/2) if sequences have positions of their own.
        sin: Of the same shape as `cos`.
        interleaved: Whether to rotate the pairs (2i, 2i + 1) instead.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if (
        torch.compiler.is_compiling()
    ):  # results that are written into views would split the compiled code
        return _rotate(x, cos, sin, interleaved)
    return _ApplyRotary.apply(x, cos, sin, interleaved)


class _ApplyRotary(torch.autograd.Function):
    """The rotation, bit-identical to autograd's version with half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate_into(x, cos, sin, x.new_empty(x.shape), interleaved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        batch, heads, length, channels = grads[0].shape
        # The memory layout of the projection's output; its backward pass would copy any other.
        out = grads[0].new_empty(batch, length, heads, channels).transpose(1, 2)
        return _rotate_into(grads[0], cos, -sin, out, ctx.interleaved), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    first, second, rest = _split_pairs(x, cos.shape[-1], interleaved)
    pair = first * cos - second * sin, second * cos + first * sin
    rotated = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def _rotate_into(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, interleaved: bool) -> Tensor:
    size = cos.shape[-1]
    first, second, rest = _split_pairs(x, size, interleaved)
    new_first, new_second, new_rest = _split_pairs(out, size, interleaved)
    torch.mul(first, cos, out=new_first).sub_(second * sin)
    torch.mul(second, cos, out=new_second).add_(first * sin)
    if rest.shape[-1]:
        new_rest.copy_(rest)
    return out


def _split_pairs(x: Tensor, size: int, interleaved: bool) -> tuple[Tensor, ...]:
    """Return views of the first and second channels of `size` pairs, and of the channels that are not rotated."""
    if not interleaved:
        return x.tensor_split((size, 2 * size), dim=-1)
    return x[..., 0 : 2 * size : 2], x[..., 1 : 2 * size : 2], x[..., 2 * size :]
