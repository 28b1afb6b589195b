"""Provide transformers classes for growlm models that no class of transformers can represent.

An exported folder has two files that import these classes, so that with growlm installed
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` returns a `GrowLMForCausalLM`.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import parse_model_config
from growlm.model.config import ModelConfig
from growlm.model.former_fields import translate_former_fields
from growlm.model.layers.causal_attention import (
    AttentionRule,
    masked_attention,
    visible_mask,
)
from growlm.model.layers.rotary import RotaryTables
from growlm.model.transformer import TransformerLM

CACHE_FIELD = (
    "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""Name of the cache in transformers' outputs; newer releases call it `cache`, in arguments too."""
POSITION_ARGUMENTS = ("position_ids", "cache_position")
"""Arguments that older releases of transformers pass, and that must equal the positions the model uses itself."""


class GrowLMConfig(PretrainedConfig):
    """`ModelConfig` as a transformers config, with the keys of `GROWLM` in `architectures.py`."""

    model_type = GROWLM.model_type

    def __init__(self, **values: Any) -> None:
        config = ModelConfig()
        fields = asdict(config)
        defaults = {key: fields[name] for name, key in GROWLM.field_to_key.items()}
        values = translate_former_fields(values)
        super().__init__(**(defaults | {"use_cache": True} | values))

    def to_model_config(self) -> ModelConfig:
        """Convert to a `ModelConfig`.

        Raises:
            UserError: If the values are not valid.
        """
        return parse_model_config(GROWLM, self.to_dict(), Path(self.name_or_path or "."))


class GrowLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `TransformerLM` with the interface of a transformers model.

    The loss is the next-token cross-entropy alone; only growlm's own training adds the router losses.

    Args:
        config: Config of the model.
    """

    config_class = GrowLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: GrowLMConfig) -> None:
        super().__init__(config)
        self.model = TransformerLM(config.to_model_config())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `TransformerLM` initializes its own weights."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output head; None where it is tied to the embedding."""
        return self.model.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        cache: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Return logits, and the loss if labels are given.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: Mask, (B, S), 0 where a token is padding; S counts the tokens in the cache too.
            labels: Target ids, (B, T), as transformers defines them: the loss shifts them and ignores -100.
            past_key_values: Cache of the keys and values of earlier tokens; those of `input_ids` are appended.
            cache: The same cache, under its name in newer releases of transformers.
            use_cache: Whether to create a cache if none is given.
            logits_to_keep: Number of last positions, or their indices, to compute logits for; 0 for all.
            return_dict: Whether to return a `CausalLMOutputWithPast`, not a tuple.
            num_items_in_batch: Divisor of the summed loss, as `Trainer` passes it when a step has several batches;
                None for the mean over this batch.
            others: Arguments of other models. None and False are ignored, and positions must equal those that the
                model uses itself. Anything else is an error, since a newer transformers may rely on its effect.

        Raises:
            ValueError: If the sequence exceeds the context length, the cache is of another type, or an argument
                is not supported.
        """
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise ValueError("cache and past_key_values are the same argument: pass only one")
        cache = past_key_values if cache is None else cache
        if not isinstance(cache, DynamicCache | None):
            raise ValueError(f"{CACHE_FIELD} must be a DynamicCache, not a {type(cache).__name__}")
        self._check_extra_arguments(others, input_ids, attention_mask, cache)
        if use_cache and cache is None:
            cache = DynamicCache()
        stream = self._stream(input_ids, attention_mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        model = self.model
        logits = model.compute_logits(stream[:, kept], model.head_weight, model.head_bias)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        if not return_dict:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE_FIELD: cache})

    def _check_extra_arguments(
        self,
        others: dict[str, Any],
        tokens: Tensor,
        mask: Tensor | None,
        cache: DynamicCache | None,
    ) -> None:
        past = 0 if cache is None else cache.get_seq_length()
        for name, value in others.items():
            if value is None or value is False:
                continue
            if name not in POSITION_ARGUMENTS:
                shown = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name}={shown}: {type(self).__name__} has no such argument")
            if not _are_default_positions(value, past, tokens, mask):
                reason = "must count the tokens of one text per row from its first token"
                raise ValueError(f"{name}: {reason}; leave it out")

    def _stream(self, tokens: Tensor, mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """Return the last hidden state, (B, T) -> (B, T, D), of tokens that follow those in the cache."""
        model = self.model
        if cache is None and (mask is None or not bool((mask.diff(dim=-1) > 0).any())):
            return model.last_hidden_state(
                tokens
            )  # right padding only: causal attention never sees it
        past = 0 if cache is None else cache.get_seq_length()
        length = past + tokens.shape[1]
        if length > model.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len={model.config.max_seq_len}")
        is_long = model.config.rope.scaling.is_long
        if past and is_long(length) and not is_long(past):
            longest = model.config.rope.scaling.original_max_seq_len
            reason = "the cached keys have other frequencies; use use_cache=False"
            raise ValueError(f"the text has become longer than {longest} tokens: {reason}")
        slots = torch.arange(length, device=tokens.device)
        positions = slots[past:]
        if mask is not None and model.position_embedding is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:length]
        x = model.embed(tokens, positions)
        # Rotated positions count from the first slot, padding included: attention depends on differences only.
        tables = RotaryTables.compute(length, model.config, x).map(lambda table: table[past:])
        for index, block in enumerate(model.blocks):
            cos, sin = tables.select(index)
            x = block(x, cos, sin, cache=_LayerCacheAdapter(cache, index, slots[past:], mask))
        return model.finish(x)


class _LayerCacheAdapter:
    """Replacement for `kv_cache.LayerCache` that attends with a mask and transformers' cache.

    Args:
        cache: Cache of keys and values; None for none.
        index: Index of the layer.
        slots: Slots of the new tokens, (T,).
        mask: Mask of all slots, (B, S), 0 where a token is padding; None for no padding.
    """

    def __init__(
        self, cache: DynamicCache | None, index: int, slots: Tensor, mask: Tensor | None
    ) -> None:
        self.cache, self.index, self.slots, self.mask = cache, index, slots, mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Compute attention: (B, H, T, C), (B, K, T, C), (B, K, T, C) -> (B, H, T, C)."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, self.index)
        all_slots = torch.arange(key.shape[2], device=key.device)
        visible = visible_mask(self.slots, all_slots, rule.window)  # (T, S)
        if self.mask is not None:  # a softmax over nothing is NaN, so padding attends to itself
            seen = self.mask[:, None, None, : len(all_slots)].bool()
            visible = visible & seen | (all_slots == self.slots[:, None])  # (B, 1, T, S)
        return masked_attention(query, key, value, visible, rule)


def _are_default_positions(
    positions: Tensor, past: int, tokens: Tensor, mask: Tensor | None
) -> bool:
    """Return whether positions are the model's own, or those that transformers derives from the mask."""
    length = tokens.shape[1]
    if positions.shape not in ((length,), (1, length), tokens.shape):
        return False
    if bool((positions == torch.arange(past, past + length, device=tokens.device)).all()):
        return True
    if mask is None:
        return False
    counted, seen = (t[:, past : past + length] for t in (mask.cumsum(-1) - 1, mask.bool()))
    return bool(((positions == counted) | ~seen).all())


__all__ = ["GrowLMConfig", "GrowLMForCausalLM"]
