"""Causal self-attention with rotary positions and grouped key/value heads.

Shapes: B batch, T time, H query heads, K key/value heads, C channels of a head, D residual channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growlm.model.causal_attention import causal_attention
from growlm.model.config import ModelConfig
from growlm.model.layers import linear


def rotary_tables(length: int, config: ModelConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021, arXiv 2104.09864), each (T, C/2).

    Computed at every forward pass in at least fp32: a table kept as a buffer would be one more tensor for
    growth, sharding and checkpoints to carry, and saves microseconds.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    exponents = (
        torch.arange(0, config.head_dim, 2, device=like.device, dtype=dtype) / config.head_dim
    )
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = torch.outer(positions, config.rope_theta**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + C/2) of x (B, heads, T, C)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Query head h reads key/value head `h // (n_heads / n_kv_heads)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = linear(config, read="residual", write="query_heads", bias=config.bias)
        self.key = linear(config, read="residual", write="key_value_heads", bias=config.bias)
        self.value = linear(config, read="residual", write="key_value_heads", bias=config.bias)
        self.output = linear(config, read="query_heads", write="residual", bias=config.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within each sequence.

        Args:
            x: Normalised residual stream, (B, T, D).
            cos: From `rotary_tables`, (T, C/2).
            sin: Likewise.

        Returns:
            What to add to the residual stream, (B, T, D).
        """
        query = rotate(self._heads(self.query(x)), cos, sin)  # (B, H, T, C)
        key = rotate(self._heads(self.key(x)), cos, sin)  # (B, K, T, C)
        value = self._heads(self.value(x))  # (B, K, T, C)
        mixed = causal_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
