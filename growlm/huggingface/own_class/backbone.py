"""Run everything before the head, as transformers calls its own base models.

Shapes: B batch, T new tokens, S slots of the cache, the new tokens included, D residual channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from growlm.huggingface.own_class.cache_attention import CacheAttention
from growlm.model.layers.rotary import RotaryTables
from growlm.model.transformer import TransformerLM

CACHE_FIELD = (
    "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else "past_key_values"
)
"""Name of the cache in transformers' outputs; newer releases call it `cache`, in arguments too."""
POSITION_ARGUMENTS = ("position_ids", "cache_position")
"""Arguments that older releases of transformers pass, and that must equal the positions the model uses itself."""


class Backbone:
    """The base model of `GrowLMForCausalLM`: a view of its `TransformerLM`, whose attributes it has.

    It is no module, because the head is one of the modules of `TransformerLM`.

    Args:
        owner: The `GrowLMForCausalLM`.
    """

    _tp_plan = _pp_plan = None

    def __init__(self, owner: PreTrainedModel) -> None:
        self._owner, self._model = owner, owner.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Return the state that the head reads, and what else is asked for; see `GrowLMForCausalLM.forward`.

        Raises:
            ValueError: If the arguments contradict each other, or the text is too long.
        """
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise ValueError("cache and past_key_values are the same argument: pass only one")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        rows = self._model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._find_cache(past_key_values if cache is None else cache, use_cache)
        span = self._find_span(rows.shape[1], attention_mask, cache)
        self._check_extra_arguments(others, rows, attention_mask, span)
        config = self._owner.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        weights: list[Tensor] | None = [] if output_attentions else None
        states: list[Tensor] | None = None if output_hidden_states in (None, False) else []
        stream = self._run_blocks(rows, span, attention_mask, cache, weights, states)
        return BaseModelOutputWithPast(
            last_hidden_state=stream,
            hidden_states=None if states is None else _select(states, output_hidden_states),
            attentions=None if weights is None else tuple(weights),
            **{CACHE_FIELD: cache},
        )

    def _find_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """Return the cache to use: the one that was given, a new one, or none."""
        is_replayed = self._owner.training and torch.is_grad_enabled()
        is_replayed &= any(block.gradient_checkpointing for block in self._model.blocks)
        if cache is None:
            default = self._owner.config.use_cache and not self._owner.training
            wanted = default if use_cache is None else use_cache
            return DynamicCache() if wanted and not is_replayed else None
        if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"{CACHE_FIELD} must be a decoder's Cache, not a {type(cache).__name__}"
            )
        if is_replayed:  # a recomputed block would append its tokens again
            raise ValueError(
                f"{CACHE_FIELD} cannot be used with gradient checkpointing: leave it out"
            )
        return cache

    def _find_span(self, num_new: int, mask: Tensor | None, cache: Cache | None) -> range:
        """Return the slots of the new tokens, counted from the first token of the text, padding included."""
        past = 0 if cache is None else int(cache.get_seq_length())
        length = past + num_new
        if length > self._model.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len={self._model.config.max_seq_len}")
        if mask is not None and (mask.ndim != 2 or mask.shape[1] < length):
            expected = (
                f"(batch, {length}), one entry per token of the text, the cached ones included"
            )
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, not {expected}")
        is_long = self._model.config.rope.scaling.is_long
        if past and is_long(length) and not is_long(past):
            longest = self._model.config.rope.scaling.original_max_seq_len
            reason = "the cached keys have other frequencies; use use_cache=False"
            raise ValueError(f"the text has become longer than {longest} tokens: {reason}")
        return range(past, length)

    def _check_extra_arguments(
        self,
        others: dict[str, Any],
        rows: Tensor,
        mask: Tensor | None,
        span: range,
    ) -> None:
        for name, value in others.items():
            if value is None or value is False:
                continue
            if name not in POSITION_ARGUMENTS:
                shown = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"{name}={shown}: {type(self._owner).__name__} has no such argument"
                )
            if not _are_default_positions(value, span.start, rows, mask):
                reason = "must count the tokens of one text per row from its first token"
                raise ValueError(f"{name}: {reason}; leave it out")

    def _run_blocks(
        self,
        rows: Tensor,
        span: range,
        mask: Tensor | None,
        cache: Cache | None,
        weights: list[Tensor] | None,
        states: list[Tensor] | None,
    ) -> Tensor:
        """Return the last hidden state, (B, T, D), of tokens that follow those in the cache.

        Args:
            rows: Their rows of the embedding, (B, T, D).
            span: Their slots.
            mask: Mask of all slots, (B, S).
            cache: Cache of the tokens before them.
            weights: List that each block's attention weights are appended to, if given.
            states: List that the residual stream before each block, and the result, are appended to, if given.
        """
        model: TransformerLM = self._model
        slots = torch.arange(span.start, span.stop, device=rows.device)
        positions = slots
        if mask is not None and model.position_embedding is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, span.start : span.stop]
        x = model.add_positions(rows, positions)
        # Rotated positions count from the first slot, padding included: attention depends on differences only.
        tables = RotaryTables.compute(span.stop, model.config, x)
        tables = tables.map(lambda table: table[span.start :])
        eager = weights is not None or self._owner.config._attn_implementation == "eager"
        attention = CacheAttention(cache, span.start, slots, mask, eager, weights)
        # With padding on the right only, a token never sees any.
        is_plain = cache is None and not eager and (mask is None or _pads_right(mask))
        for index, block in enumerate(model.blocks):
            if states is not None:
                states.append(x)
            cos, sin = tables.select(index)
            # By position: transformers would take it for a cache, which recomputed blocks do not get.
            x = block(x, cos, sin, None, None if is_plain else attention.layer(index), None)
        x = model.finish(x)
        if states is not None:
            states.append(x)
        return x


def _pads_right(mask: Tensor) -> bool:
    """Return whether no token of a mask (B, S) follows padding."""
    return not bool((mask.diff(dim=-1) > 0).any())


def _select(
    states: Sequence[Tensor], chosen: bool | Sequence[int] | None
) -> tuple[Tensor | None, ...]:
    """Return the states, with None in place of those that were not asked for."""
    if chosen is True:
        return tuple(states)
    indices = {range(len(states))[index] for index in chosen or ()}
    return tuple(state if index in indices else None for index, state in enumerate(states))


def _are_default_positions(positions: Tensor, past: int, rows: Tensor, mask: Tensor | None) -> bool:
    """Return whether positions are the model's own, or those that transformers derives from the mask."""
    batch, length = rows.shape[:2]
    if positions.shape not in ((length,), (1, length), (batch, length)):
        return False
    if bool((positions == torch.arange(past, past + length, device=rows.device)).all()):
        return True
    if mask is None:
        return False
    counted, seen = (t[:, past : past + length] for t in (mask.cumsum(-1) - 1, mask.bool()))
    return bool(((positions == counted) | ~seen).all())
