"""Linear layers and norms whose parameters carry axis labels."""

from __future__ import annotations

from torch import nn

from growlm.model.axes import Dim, Label, Role, label, reads, writes
from growlm.model.config import ModelConfig


def labeled_linear(config: ModelConfig, *, read: str, write: str, bias: bool) -> nn.Linear:
    """Create a linear layer from the axis `read` to the axis `write`."""
    sizes = config.axis_sizes()
    layer = nn.Linear(sizes[read], sizes[write], bias=bias)
    label(layer, weight=Label((writes(write), reads(read))))
    if bias:
        label(layer, bias=Label((writes(write),)))
    return layer


def labeled_norm(config: ModelConfig, *, feeds_tied_head: bool = False) -> nn.Module:
    """Create the config's norm over the residual stream.

    Args:
        config: Config of the model.
        feeds_tied_head: See `Label`.
    """
    gain = Label((Dim(Role.GAIN, "residual"),), feeds_tied_head=feeds_tied_head)
    if config.norm.kind == "rmsnorm":
        layer: nn.Module = nn.RMSNorm(config.d_model, eps=config.norm.eps)
    else:
        layer = nn.LayerNorm(config.d_model, eps=config.norm.eps, bias=config.norm.bias)
        if config.norm.bias:
            label(
                layer, bias=Label((Dim(Role.SHIFT, "residual"),), feeds_tied_head=feeds_tied_head)
            )
    label(layer, weight=gain)
    return layer


def labeled_qk_norm(config: ModelConfig) -> nn.Module | None:
    """Create the norm of the channels of each query or key head; None if the config has none."""
    if config.attention.qk_norm == "none":
        return None
    layer = nn.RMSNorm(config.head_dim, eps=config.attention.qk_norm_eps)
    label(layer, weight=Label((Dim(Role.GAIN, "head_channels"),)))
    return layer
