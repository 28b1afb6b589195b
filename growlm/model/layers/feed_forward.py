"""The dense feed-forward block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growlm.model.config import ModelConfig
from growlm.model.layers.labeled_layers import labeled_linear

_gelu_tanh = partial(F.gelu, approximate="tanh")
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
}
"""The function of each kind of feed-forward block; gated ones apply it to the gate."""


def apply_activation(kind: str, up: Tensor, gate: Tensor | None) -> Tensor:
    """Return the hidden units: the function of `up`, or `up` times the function of the gate if there is one.

    Args:
        kind: Kind of the feed-forward block.
        up: Result of the projection `up`.
        gate: Result of the projection `gate`; None where the kind has none.
    """
    function = _FUNCTIONS[kind]
    return function(up) if gate is None else function(gate) * up


class FeedForward(nn.Module):
    """The feed-forward block: residual -> hidden -> residual, applied to every token.

    Args:
        config: Config of the model.
        hidden: Axis of the hidden units.
    """

    def __init__(self, config: ModelConfig, hidden: str = "hidden") -> None:
        super().__init__()
        self.kind, bias = config.feed_forward.kind, config.feed_forward.bias
        self.up = labeled_linear(config, read="residual", write=hidden, bias=bias)
        self.gate = (
            labeled_linear(config, read="residual", write=hidden, bias=bias)
            if config.feed_forward.is_gated
            else None
        )
        self.down = labeled_linear(config, read=hidden, write="residual", bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream, (B, T, D), for the normalized stream x (B, T, D)."""
        gate = None if self.gate is None else self.gate(x)
        return self.down(apply_activation(self.kind, self.up(x), gate))
