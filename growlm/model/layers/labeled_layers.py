"""Linear layers and norms whose parameters carry axis labels."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from growlm.model.axes import Label, gain, index, label, reads, shift, writes
from growlm.model.config import ModelConfig

Norm = TypeVar("Norm", bound=nn.Module)


def label_linear(
    layer: nn.Linear, *, read: str, write: str, ends_update: bool | None = None
) -> nn.Linear:
    """Label a linear layer from the axis `read` to the axis `write`, with its bias, and return it.

    Args:
        layer: Layer whose weight is (write, read).
        read: Axis of its inputs.
        write: Axis of its outputs.
        ends_update: See `Label`.
    """
    label(layer, weight=Label((writes(write), reads(read)), ends_update=ends_update))
    if layer.bias is not None:
        label(layer, bias=Label((writes(write),), ends_update=ends_update))
    return layer


def label_embedding(
    layer: nn.Embedding, *, over: str = "vocabulary", write: str = "residual"
) -> nn.Embedding:
    """Label a table with one row of `write` channels per member of `over`, and return it."""
    label(layer, weight=Label((index(over), writes(write))))
    return layer


def label_norm(
    layer: Norm,
    axis: str = "residual",
    *,
    feeds_tied_head: bool = False,
    ends_update: bool | None = None,
    offset: float = 0.0,
) -> Norm:
    """Label a norm over the channels of an axis, with its bias if it has one, and return it.

    Args:
        layer: Norm with the parameters `weight` and perhaps `bias`.
        axis: Axis whose channels it normalizes.
        feeds_tied_head: See `Label`.
        ends_update: See `Label`.
        offset: See `Label`.
    """
    label(layer, weight=Label((gain(axis),), None, feeds_tied_head, ends_update, offset))
    if getattr(layer, "bias", None) is not None:
        label(layer, bias=Label((shift(axis),), feeds_tied_head=feeds_tied_head))
    return layer


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose gain is its weight plus a constant.

    Args:
        size: Number of channels.
        eps: Constant added to the variance.
        offset: Constant added to the weight.
    """

    def __init__(self, size: int, eps: float, offset: float) -> None:
        super().__init__(size, eps=eps)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return F.rms_norm(x, self.normalized_shape, self.weight + self.offset, self.eps)


class OffsetLayerNorm(nn.LayerNorm):
    """LayerNorm whose gain is its weight plus a constant.

    Args:
        size: Number of channels.
        eps: Constant added to the variance.
        bias: Whether it has a bias.
        offset: Constant added to the weight.
    """

    def __init__(self, size: int, eps: float, bias: bool, offset: float) -> None:
        super().__init__(size, eps=eps, bias=bias)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return F.layer_norm(
            x, self.normalized_shape, self.weight + self.offset, self.bias, self.eps
        )


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize in the norm's own precision: under autocast, outputs of projections are in half precision."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    normalized: Tensor = norm(x.to(weight.dtype))
    return normalized


def labeled_linear(config: ModelConfig, *, read: str, write: str, bias: bool) -> nn.Linear:
    """Create a linear layer from the axis `read` to the axis `write`."""
    sizes = config.axis_sizes()
    layer = nn.Linear(sizes[read], sizes[write], bias=bias)
    ends_update = output_ends_update(config) if write == "residual" else None
    return label_linear(layer, read=read, write=write, ends_update=ends_update)


def output_ends_update(config: ModelConfig) -> bool:
    """Return whether an output projection is the last parameter of its sub-block: no norm follows it."""
    return config.norm.placement == "pre"


def labeled_norm(
    config: ModelConfig, *, feeds_tied_head: bool = False, ends_update: bool | None = None
) -> nn.Module:
    """Create the config's norm over the residual stream, or over an update of it.

    Args:
        config: Config of the model.
        feeds_tied_head: See `Label`.
        ends_update: See `Label`.
    """
    if config.norm.kind == "rmsnorm":
        layer = _make_rmsnorm(config, config.d_model, config.norm.eps)
    else:
        layer = _make_layernorm(config)
    return label_norm(
        layer,
        feeds_tied_head=feeds_tied_head,
        ends_update=ends_update,
        offset=config.norm.gain_offset,
    )


def labeled_qk_norm(config: ModelConfig, heads_axis: str) -> nn.Module | None:
    """Create the norm of the queries or keys; None if the config has none.

    Args:
        config: Config of the model.
        heads_axis: Axis of all heads' channels, which `full` normalizes together.
    """
    kind, eps = config.attention.qk_norm, config.attention.qk_norm_eps
    if kind == "none" or eps is None:
        return None
    axis = "head_channels" if kind == "head" else heads_axis
    layer = _make_rmsnorm(config, config.axis_sizes()[axis], eps)
    return label_norm(layer, axis, offset=config.norm.gain_offset)


def _make_layernorm(config: ModelConfig) -> nn.Module:
    norm = config.norm
    if norm.gain_offset:
        return OffsetLayerNorm(config.d_model, norm.eps, norm.bias, norm.gain_offset)
    return nn.LayerNorm(config.d_model, eps=norm.eps, bias=norm.bias)


def _make_rmsnorm(config: ModelConfig, size: int, eps: float) -> nn.Module:
    if config.norm.gain_offset:
        return OffsetRMSNorm(size, eps, config.norm.gain_offset)
    return nn.RMSNorm(size, eps=eps)
