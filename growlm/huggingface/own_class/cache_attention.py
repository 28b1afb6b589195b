"""Attend with transformers' caches and masks, and keep the attention weights if they are asked for.

Shapes: B batch, T new tokens, S slots of the cache, H query heads, K key/value heads, C channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from growlm.model.layers.causal_attention import (
    AttentionRule,
    attention_weights,
    masked_attention,
    mix_values,
    visible_mask,
)


class CacheAttention:
    """Attention of all layers, as `kv_cache.KeyValueCache` provides it to growlm's own generation.

    Args:
        cache: Cache of keys and values; None for none.
        past: Number of tokens in the cache before the new ones.
        slots: Slots of the new tokens, (T,).
        mask: Mask of the slots, (B, S), 0 where a token is padding; None for no padding.
        eager: Whether to compute all weights, and not to call a fused kernel.
        weights: List that each layer's weights, (B, H, T, S), are appended to if they are computed.
    """

    def __init__(
        self,
        cache: Cache | None,
        past: int,
        slots: Tensor,
        mask: Tensor | None,
        eager: bool,
        weights: list[Tensor] | None = None,
    ) -> None:
        self.cache, self.past, self.slots, self.mask = cache, past, slots, mask
        self.eager, self.weights = eager, weights

    def layer(self, index: int) -> _LayerAttention:
        """Return the attention of one layer."""
        return _LayerAttention(self, index)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, index: int
    ) -> Tensor:
        """Compute attention of one layer; see `_LayerAttention.attend`.

        Raises:
            ValueError: If the cache has dropped tokens.
        """
        if self.cache is not None:
            num_new = key.shape[2]
            key, value = self.cache.update(key, value, index)
            if key.shape[2] < self.past + num_new:
                raise ValueError(
                    f"the cache keeps {key.shape[2]} of {self.past + num_new} tokens; use one that keeps all"
                )
        mask = self._visible(key.shape[2], rule.window)
        if not self.eager:
            return masked_attention(query, key, value, mask, rule)
        weights = attention_weights(query, key, mask, rule)
        if self.weights is not None:
            self.weights.append(weights)
        return mix_values(weights, value)

    def _visible(self, num_slots: int, window: int | None) -> Tensor:
        """Return which slots each new token attends to, (T, S) or (B, 1, T, S); unused slots come last."""
        all_slots = torch.arange(num_slots, device=self.slots.device)
        visible = visible_mask(self.slots, all_slots, window)  # (T, S)
        if self.mask is None:
            return visible
        seen = self.mask[:, :num_slots].bool()
        seen = F.pad(seen, (0, num_slots - seen.shape[1]))[:, None, None]
        # A softmax over nothing is NaN, so padding attends to itself.
        return visible & seen | (all_slots == self.slots[:, None])  # (B, 1, T, S)


class _LayerAttention:
    """Replacement for `kv_cache.LayerCache`."""

    def __init__(self, attention: CacheAttention, index: int) -> None:
        self._attention, self._index = attention, index

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Compute attention: (B, H, T, C), (B, K, T, C), (B, K, T, C) -> (B, H, T, C)."""
        return self._attention.attend(query, key, value, rule, self._index)
