"""Causal self-attention with rotary positions and grouped key/value heads.

Shapes: B batch, T time, H query heads, K key/value heads, C channels of a head, D residual channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from growlm.model.config import ModelConfig
from growlm.model.kv_cache import LayerCache
from growlm.model.layers.causal_attention import causal_attention
from growlm.model.layers.labeled_layers import labeled_linear, labeled_qk_norm
from growlm.model.layers.rotary import apply_rotary


class Attention(nn.Module):
    """Self-attention in which query head h reads key/value head `h // (n_heads / n_kv_heads)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        qkv_bias, output_bias = config.attention.bias != "none", config.attention.bias == "all"
        self.query = labeled_linear(config, read="residual", write="query_heads", bias=qkv_bias)
        self.key = labeled_linear(config, read="residual", write="key_value_heads", bias=qkv_bias)
        self.value = labeled_linear(config, read="residual", write="key_value_heads", bias=qkv_bias)
        self.query_norm, self.key_norm = labeled_qk_norm(config), labeled_qk_norm(config)
        self.output = labeled_linear(config, read="query_heads", write="residual", bias=output_bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            x: Normalized residual stream, (B, T, D).
            cos: Cosines from `rotary_tables` or a cache's `extend`; see `apply_rotary`.
            sin: Sines, likewise.
            cache: Cache of the tokens before these, if any; it stores these tokens, too.

        Returns:
            The update of the residual stream, (B, T, D).
        """
        query, key = self._split_heads(self.query(x)), self._split_heads(self.key(x))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = apply_rotary(query, cos, sin)  # (B, H, T, C)
        key = apply_rotary(key, cos, sin)  # (B, K, T, C)
        value = self._split_heads(self.value(x))  # (B, K, T, C)
        attend = causal_attention if cache is None else cache.attend
        mixed = attend(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
