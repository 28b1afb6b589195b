"""The key/value cache, with which each new token costs one position's work.

Sequences of different lengths are padded on the left: all of them end at the same slot, which makes every write
one slice. A sequence's positions count from its own first token, and nothing attends to padding.

Shapes: B sequences, T new tokens, S slots in use, H query heads, K key/value heads, G = H/K query heads per
key/value head, C channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growlm.model.config import ModelConfig
from growlm.model.layers.causal_attention import (
    PLAIN,
    AttentionRule,
    causal_attention,
    masked_attention,
    visible_mask,
)
from growlm.model.layers.rotary import RotaryTables


class KeyValueCache:
    """The key/value cache of one batch of sequences.

    Args:
        config: Config of the model.
        num_slots: Capacity of each sequence in tokens, padding included.
        left_padding: Number of padding slots before each sequence's first token, (B,).
        sequence_length: Number of slots that will be in use soon, if known; see `is_outdated_by`.

    Attributes:
        layers: The caches of the attention layers.
        begin: First slot of the tokens being read.
        end: Slot after the last of them.
        positions: Positions of the tokens being read in their own sequences, (T,) or (B, T).
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        left_padding: Tensor,
        sequence_length: int = 0,
    ) -> None:
        self.num_slots, self._sequence_length = num_slots, sequence_length
        self.begin = self.end = 0
        self._masks: dict[int | None, Tensor | None] = {}
        self.layers = [LayerCache(self) for _ in range(config.n_layers)]
        self._config = config
        self._left_padding = left_padding if bool(left_padding.any()) else None
        self._rotary: RotaryTables | None = None
        self._table_of_row: Tensor | None = None  # (B,), where rows have different tables

    def extend(self, num_new: int, like: Tensor) -> RotaryTables:
        """Make room for T more tokens, which the layers are about to read.

        Args:
            num_new: Number of new tokens, T.
            like: Tensor whose device and dtype the rotary tables get.

        Returns:
            The rotary tables of the new tokens.

        Raises:
            ValueError: If the cache is too small, or outdated.
        """
        if self.is_outdated_by(num_new):
            raise ValueError("the sequences' frequencies change: read all tokens again")
        if self.end + num_new > self.num_slots:
            raise ValueError(f"{self.end + num_new} tokens in a cache of {self.num_slots} slots")
        self.begin, self.end = self.end, self.end + num_new
        if self._rotary is None:
            self._rotary = self._make_tables(like).map(lambda table: table.to(like.dtype))
        slots = torch.arange(self.begin, self.end, device=like.device)
        self._masks.clear()
        if self._left_padding is None:
            self.positions = slots
            return self._rotary.map(lambda table: table[self.begin : self.end])
        self.positions = (slots - self._left_padding.unsqueeze(1)).clamp(min=0)  # (B, T)
        if self._table_of_row is None:
            return self._rotary.map(lambda table: table[self.positions].unsqueeze(1))
        rows = self._table_of_row.unsqueeze(1)
        return self._rotary.map(lambda tables: tables[rows, self.positions].unsqueeze(1))

    def _make_tables(self, like: Tensor) -> RotaryTables:
        """Return the rotary tables of all slots; with two sets of them if rows have different ones."""
        is_long = self._rows_are_long(self.end)
        short, long = 1, self._config.rope.scaling.original_max_seq_len + 1

        def compute(length: int) -> RotaryTables:
            return RotaryTables.compute(self.num_slots, self._config, like, length)

        if len({*is_long}) == 1:
            return compute(long if is_long[0] else short)
        self._table_of_row = torch.tensor(is_long, device=like.device).long()
        return compute(short).stack(compute(long))

    def _rows_are_long(self, end: int) -> list[bool]:
        """Return whether each sequence is a long one for its rotary frequencies, up to slot `end`."""
        scaling, end = self._config.rope.scaling, max(end, self._sequence_length)
        padding = [0] if self._left_padding is None else self._left_padding.tolist()
        return [scaling.is_long(end - pad) for pad in padding]

    def is_outdated_by(self, num_new: int) -> bool:
        """Return whether the keys that are stored were rotated otherwise than T more tokens require.

        That is so where a `longrope` sequence becomes longer than the original length: read all tokens again, into
        a new cache.
        """
        if self.end == 0 or self._config.rope.scaling.kind != "longrope":
            return False
        return self._rows_are_long(self.end + num_new) != self._rows_are_long(self.end)

    def get_mask(self, window: int | None) -> Tensor | None:
        """Return the slots that the tokens being read attend to.

        Args:
            window: Number of slots, its own included, that each token attends to; None for all before it.

        Returns:
            (B, 1, T, S) or (1, 1, T, S); None for plain causal attention of all tokens so far, or of one token to
            all slots.
        """
        if window is not None and window >= self.end:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        is_plain = self.begin == 0 or self.end - self.begin == 1
        if self._left_padding is None and (self.begin == 0 if window is not None else is_plain):
            return None
        all_slots = torch.arange(self.end, device=self.positions.device)
        slots = all_slots[self.begin :]
        visible = visible_mask(slots, all_slots, window)  # (T, S)
        if self._left_padding is None:
            return visible[None, None]
        not_padding = all_slots >= self._left_padding.unsqueeze(1)  # (B, S)
        # Padding attends to itself, because a softmax over nothing is NaN.
        itself = all_slots == slots.unsqueeze(1)
        return (visible & not_padding.unsqueeze(1) | itself).unsqueeze(1)

    def select_sequences(self, indices: Tensor) -> None:
        """Keep only some of the sequences.

        Args:
            indices: Indices of the sequences to keep, ascending.
        """
        if self._left_padding is not None:
            self._left_padding = self._left_padding[indices]
        if self._table_of_row is not None:
            self._table_of_row = self._table_of_row[indices]
        for layer in self.layers:
            layer.select_sequences(indices)


def _attend_single_query(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    end: int,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attend with one query row per head, in two plain products.

    On a CPU and in half precision this is faster than the fused kernel. A product copies an operand that is a
    part of a buffer, so the whole buffer is multiplied unless it is mostly empty.

    Args:
        query: (B, K, 1, C).
        keys: (B, K, slots, C), zero in unused slots.
        values: (B, K, slots, C), zero in unused slots.
        end: Number of slots in use, S.
        mask: (B, 1, 1, S) or None.
        scale: Factor of the scores; None for 1 / sqrt(C).
    """
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if 2 * end < keys.shape[2]:
        keys, values = keys[:, :, :end], values[:, :, :end]
    scores = torch.matmul(query * scale, keys.mT)  # (B, K, 1, slots)
    scores[..., end:] = float("-inf")
    if mask is not None:
        scores[..., :end].masked_fill_(~mask, float("-inf"))
    return torch.matmul(scores.softmax(dim=-1), values)


class LayerCache:
    """Keys and values of one layer, each (B, K, slots, C); allocated on first use."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule = PLAIN
    ) -> Tensor:
        """Store the new keys and values, and attend to everything stored.

        Args:
            query: (B, H, T, C).
            key: (B, K, T, C).
            value: (B, K, T, C).
            rule: Scale, bound and window of the scores.

        Returns:
            The attention output, (B, H, T, C).
        """
        cache = self._cache
        if self._keys is None or self._values is None:
            batch, heads, _, channels = key.shape
            self._keys = key.new_zeros(batch, heads, cache.num_slots, channels)
            self._values = torch.zeros_like(self._keys)
        self._keys[:, :, cache.begin : cache.end] = key
        self._values[:, :, cache.begin : cache.end] = value
        mask = cache.get_mask(rule.window)
        if cache.begin == 0 and mask is None:
            return causal_attention(query, key, value, rule)
        keys, values = self._keys[:, :, : cache.end], self._values[:, :, : cache.end]
        if rule.softcap is not None:
            return masked_attention(query, keys, values, mask, rule)
        groups = query.shape[1] // key.shape[1]
        if mask is not None and groups > 1 and mask.shape[2] > 1:
            mask = mask.repeat(1, 1, groups, 1)
        # The query heads of a group become rows that share their keys, so the keys are read once.
        rows = query.reshape(len(query), key.shape[1], -1, key.shape[3])  # (B, K, G·T, C)
        half = query.dtype in (torch.bfloat16, torch.float16)
        if half and rows.device.type == "cpu" and rows.shape[2] == 1:
            mixed = _attend_single_query(
                rows, self._keys, self._values, cache.end, mask, rule.scale
            )
        else:
            mixed = F.scaled_dot_product_attention(
                rows, keys, values, attn_mask=mask, scale=rule.scale
            )
        return mixed.reshape(query.shape)

    def select_sequences(self, indices: Tensor) -> None:
        """Keep only some of the sequences; see `KeyValueCache.select_sequences`."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[indices], self._values[indices]
