"""The dense feed-forward block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from growlm.model.config import ModelConfig
from growlm.model.layers.labeled_layers import labeled_linear


def apply_activation(up: Tensor, gate: Tensor | None) -> Tensor:
    """Return GELU of `up`, or SwiGLU (Shazeer 2020, arXiv 2002.05202) if there is a gate."""
    return F.gelu(up) if gate is None else F.silu(gate) * up


class FeedForward(nn.Module):
    """The feed-forward block: residual -> hidden -> residual, applied to every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = labeled_linear(
            config, read="residual", write="hidden", bias=config.feed_forward.bias
        )
        self.gate = (
            labeled_linear(config, read="residual", write="hidden", bias=config.feed_forward.bias)
            if config.feed_forward.kind == "swiglu"
            else None
        )
        self.down = labeled_linear(
            config, read="hidden", write="residual", bias=config.feed_forward.bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream, (B, T, D), for the normalized stream x (B, T, D)."""
        return self.down(apply_activation(self.up(x), None if self.gate is None else self.gate(x)))
