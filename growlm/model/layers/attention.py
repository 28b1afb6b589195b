"""Causal self-attention with grouped key/value heads.

Shapes: B batch, T time, H query heads, K key/value heads, C channels of a head, D residual channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from growlm.model.config import ModelConfig
from growlm.model.kv_cache import LayerCache
from growlm.model.layers.causal_attention import AttentionRule, causal_attention
from growlm.model.layers.labeled_layers import apply_norm, labeled_linear, labeled_qk_norm
from growlm.model.layers.rotary import apply_rotary


class Attention(nn.Module):
    """Self-attention in which query head h reads key/value head `h // (n_heads / n_kv_heads)`.

    Args:
        config: Config of the model.
        block: Index of the block that it is part of.
    """

    def __init__(self, config: ModelConfig, block: int = 0) -> None:
        super().__init__()
        self.head_dim, self.rotates = config.head_dim, config.rotates(block)
        self.interleaved = config.rope.interleaved
        own = config.attention
        self.rule = AttentionRule(own.scale, own.softcap, config.block_window(block))
        self.norms_all_heads = own.qk_norm == "full"
        qkv_bias, output_bias = own.bias != "none", own.bias == "all"
        self.query = labeled_linear(config, read="residual", write="query_heads", bias=qkv_bias)
        self.key = labeled_linear(config, read="residual", write="key_value_heads", bias=qkv_bias)
        self.value = labeled_linear(config, read="residual", write="key_value_heads", bias=qkv_bias)
        self.query_norm = labeled_qk_norm(config, "query_heads")
        self.key_norm = labeled_qk_norm(config, "key_value_heads")
        self.output = labeled_linear(config, read="query_heads", write="residual", bias=output_bias)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            x: Normalized residual stream, (B, T, D).
            cos: Cosines from `rotary_tables` or a cache's `extend`; see `apply_rotary`.
            sin: Sines, likewise.
            cache: Cache of the tokens before these, if any; it stores these tokens, too.
            mask: Mask of packed documents without a cache; see `causal_attention`.

        Returns:
            The update of the residual stream, (B, T, D).
        """
        query = self._split_and_norm(self.query(x), self.query_norm)  # (B, H, T, C)
        key = self._split_and_norm(self.key(x), self.key_norm)  # (B, K, T, C)
        if self.rotates:
            query = apply_rotary(query, cos, sin, self.interleaved)
            key = apply_rotary(key, cos, sin, self.interleaved)
        value = self._split_heads(self.value(x))  # (B, K, T, C)
        mixed = (
            causal_attention(query, key, value, self.rule, mask)
            if cache is None
            else cache.attend(query, key, value, self.rule)
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split_and_norm(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return self._split_heads(x)
        if self.norms_all_heads:
            return self._split_heads(apply_norm(norm, x).to(x.dtype))
        return apply_norm(norm, self._split_heads(x)).to(x.dtype)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
