"""Models of ours as classes of transformers, for those that transformers has no class of its own for.

An export's folder has two files that import these classes, so that with growlm installed
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` gives a `GrowLMForCausalLM`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import parse_model_config
from growlm.model.config import ModelConfig
from growlm.model.layers.rotary import rotary_tables
from growlm.model.transformer import TransformerLM

CACHE_FIELD = (
    "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""How transformers names the cache in outputs; newer releases call it `cache`, in arguments too."""
POSITION_ARGUMENTS = ("position_ids", "cache_position")
"""Arguments that older releases of transformers count for themselves, and that must agree with our own count."""


class GrowLMConfig(PretrainedConfig):
    """`ModelConfig` under the names of Hugging Face, as `GROWLM` in `architectures.py` has them."""

    model_type = GROWLM.model_type

    def __init__(self, **values: Any) -> None:
        shape = ModelConfig()
        defaults = {theirs: getattr(shape, ours) for ours, theirs in GROWLM.field_to_key.items()}
        super().__init__(**(defaults | {"use_cache": True} | values))

    def to_model_config(self) -> ModelConfig:
        """The `ModelConfig`.

        Raises:
            UserError: If it cannot be.
        """
        return parse_model_config(GROWLM, self.to_dict(), Path(self.name_or_path or "."))


class GrowLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `TransformerLM`, called as transformers calls its models.

    The loss is the cross-entropy of the next token alone: the router's losses are growlm's training's.

    Args:
        config: The shape.
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
        """Nothing: `TransformerLM` has its own initial values."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the embedding."""
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
        """Return logits, and the loss where there are labels.

        Args:
            input_ids: (B, T).
            attention_mask: (B, S), 0 where a token is padding; S counts the tokens in the cache too.
            labels: (B, T), as transformers has them: the loss shifts them, -100 counts for nothing.
            past_key_values: Keys and values of the tokens before these; those of these are added.
            cache: The same, under the name that newer releases of transformers give it.
            use_cache: Make one, if there is none.
            logits_to_keep: Only of the last so many positions, or of these; 0 for all.
            return_dict: False for a tuple.
            num_items_in_batch: What the sum of the losses is divided by, as `Trainer` asks for it where a step is
                made of several batches; None for the mean of these.
            others: Arguments of other models. None and False mean that nothing is asked for; positions must be
                those that this model counts itself; anything else is an error, since a newer transformers may mean
                something by it.

        Raises:
            ValueError: If the texts are longer than the model reads, the cache is of another kind, or something
                is asked for that the model does not do.
        """
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise ValueError("cache and past_key_values are two names of one argument: give one")
        cache = past_key_values if cache is None else cache
        if not isinstance(cache, DynamicCache | None):
            raise ValueError(f"{CACHE_FIELD}: {type(cache).__name__}; must be a DynamicCache")
        self._check_extra_arguments(others, input_ids, attention_mask, cache)
        if use_cache and cache is None:
            cache = DynamicCache()
        stream = self._stream(input_ids, attention_mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = nn.functional.linear(stream[:, kept], self.model.head_weight)
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
                what = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name}={what}: {type(self).__name__} has no such argument")
            if not _are_default_positions(value, past, tokens, mask):
                allowed = "must be those of one text in each row, counted from its first token"
                raise ValueError(f"{name}: {allowed}; leave them out")

    def _stream(self, tokens: Tensor, mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """The final stream, (B, T) -> (B, T, D), of tokens that follow those in the cache."""
        model = self.model
        if cache is None and (mask is None or not bool((mask.diff(dim=-1) > 0).any())):
            return model.last_hidden_state(tokens)  # what comes after a text is never seen by it
        past = 0 if cache is None else cache.get_seq_length()
        length = past + tokens.shape[1]
        if length > model.config.max_seq_len:
            raise ValueError(f"{length} tokens; max_seq_len is {model.config.max_seq_len}")
        slots = torch.arange(length, device=tokens.device)
        visible = slots <= slots[past:, None]  # (T, S)
        if mask is not None:  # a softmax over nothing is NaN: padding sees itself
            itself = slots == slots[past:, None]
            visible = visible & mask[:, None, None, :length].bool() | itself  # (B, 1, T, S)
        x = model.embedding(tokens)
        # Positions count from the first slot, padding or not: attention sees their differences only.
        cos, sin = (table[past:] for table in rotary_tables(length, model.config, x))
        for index, block in enumerate(model.blocks):
            x = block(x, cos, sin, cache=_LayerCacheAdapter(cache, index, visible))
        return model.final_norm(x)


class _LayerCacheAdapter:
    """What an attention layer attends by, in place of `kv_cache.LayerCache`: a mask, and transformers' cache.

    Args:
        cache: Remembers keys and values, if there is one.
        index: The layer's.
        visible: What each token sees, (T, S) or (B, 1, T, S).
    """

    def __init__(self, cache: DynamicCache | None, index: int, visible: Tensor) -> None:
        self.cache, self.index, self.visible = cache, index, visible

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, T, C), (B, K, T, C), (B, K, T, C) -> (B, H, T, C)."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, self.index)
        grouped = query.shape[1] != key.shape[1]
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.visible, enable_gqa=grouped
        )


def _are_default_positions(
    positions: Tensor, past: int, tokens: Tensor, mask: Tensor | None
) -> bool:
    """Return whether positions are the model's own, or those that transformers counts beside padding."""
    time = tokens.shape[1]
    if positions.shape not in ((time,), (1, time), tokens.shape):
        return False
    if bool((positions == torch.arange(past, past + time, device=tokens.device)).all()):
        return True
    if mask is None:
        return False
    counted, seen = (t[:, past : past + time] for t in (mask.cumsum(-1) - 1, mask.bool()))
    return bool(((positions == counted) | ~seen).all())


__all__ = ["GrowLMConfig", "GrowLMForCausalLM"]
