"""Provide transformers classes for growlm models that no class of transformers can represent.

An exported folder has two files that import these classes, so that with growlm installed
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` returns a `GrowLMForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import parse_model_config
from growlm.huggingface.own_class.cache_attention import CacheAttention
from growlm.model.config import ModelConfig
from growlm.model.former_fields import translate_former_fields
from growlm.model.initialization import INIT_STD, initial_distribution
from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.layers.labeled_layers import label_embedding, label_linear
from growlm.model.layers.rotary import RotaryTables
from growlm.model.loss import cap_logits
from growlm.model.transformer import Block, TransformerLM

CACHE_FIELD = (
    "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""Name of the cache in transformers' outputs; newer releases call it `cache`, in arguments too."""
POSITION_ARGUMENTS = ("position_ids", "cache_position")
"""Arguments that older releases of transformers pass, and that must equal the positions the model uses itself."""


class GrowLMConfig(PretrainedConfig):
    """`ModelConfig` as a transformers config, with the keys of `GROWLM` in `architectures.py`."""

    model_type = GROWLM.model_type
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        config = ModelConfig()
        fields = asdict(config)
        defaults = {key: fields[name] for name, key in GROWLM.field_to_key.items()}
        values = translate_former_fields(values)
        # transformers takes `use_cache` for a setting of generation, and does not set it by itself.
        self.use_cache: bool = values.pop("use_cache", True)
        super().__init__(**(defaults | {"initializer_range": INIT_STD} | values))

    def to_model_config(self) -> ModelConfig:
        """Convert to a `ModelConfig`.

        Raises:
            UserError: If the values are not valid.
        """
        return parse_model_config(GROWLM, self.to_dict(), Path(self.name_or_path or "."))


class GrowLMBlock(GradientCheckpointingLayer, Block):
    """A `Block` that transformers can recompute in the backward pass."""


class GrowLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `TransformerLM` with the interface of a transformers model.

    The loss is the next-token cross-entropy alone; only growlm's own training adds the router losses.

    Args:
        config: Config of the model.
    """

    config_class = GrowLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["GrowLMBlock"]  # noqa: RUF012

    def __init__(self, config: GrowLMConfig) -> None:
        super().__init__(config)
        device = torch.get_default_device()
        with torch.device("meta"):  # transformers calls `_init_weights` for the values
            self.model = TransformerLM(config.to_model_config(), block_class=GrowLMBlock)
        if device.type != "meta":
            self.model.to_empty(device=device)
            for buffer in self.model.buffers():
                buffer.zero_()
        mixtures = [m for m in self.model.modules() if isinstance(m, MixtureOfExperts)]
        for mixture in mixtures:  # a router in half precision would choose other experts
            wide = torch.promote_types(mixture.router.weight.dtype, torch.float32)
            mixture.router.to(wide)
            if mixture.selection_bias is not None:
                mixture.selection_bias = mixture.selection_bias.to(wide)
        biased = any(mixture.selection_bias is not None for mixture in mixtures)
        names = {"router": bool(mixtures), "selection_bias": biased}
        self._keep_in_fp32_modules_strict = {name for name, exists in names.items() if exists}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw a module's initial values from the distributions of `TransformerLM`, with torch's generator."""
        labels = getattr(module, "axis_labels", None)
        if labels is None:
            super()._init_weights(module)
            return
        n_layers, std = self.config.num_hidden_layers, self.config.initializer_range
        for name, label in labels.items():
            mean, deviation = initial_distribution(label, n_layers, std)
            if (tensor := getattr(module, name)) is None:
                continue
            if deviation == 0:
                init.constant_(tensor, mean)
            else:
                init.normal_(tensor, mean, deviation)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding; its number of rows becomes the size of the vocabulary."""
        self.model.embedding = label_embedding(value)
        self.model.config = replace(self.model.config, vocab_size=value.num_embeddings)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output head; None where it is tied to the embedding."""
        return self.model.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output head.

        Raises:
            ValueError: If the head is tied to the embedding.
        """
        if self.model.head is None:
            raise ValueError("the head is tied to the embedding: use set_input_embeddings")
        self.model.head = label_linear(value, read="residual", write="vocabulary")

    @staticmethod
    def create_masks_for_generate(
        *args: Any, attention_mask: Tensor | None = None, **others: Any
    ) -> Tensor | None:
        """Return the mask of padding as it is: `forward` makes the masks of each block from it."""
        return attention_mask

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        shift_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Return logits, and the loss if labels are given.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: Mask, (B, S), 0 where a token is padding; S counts the tokens in the cache too.
            labels: Target ids, (B, T), as transformers defines them: the loss shifts them and ignores -100.
            past_key_values: Cache of the keys and values of earlier tokens; those of `input_ids` are appended.
            cache: The same cache, under its name in newer releases of transformers.
            use_cache: Whether to create a cache if none is given; None for the config's value, and for no cache
                while training.
            logits_to_keep: Number of last positions, or their indices, to compute logits for; 0 for all.
            return_dict: Whether to return a `CausalLMOutputWithPast`, not a tuple; None for the config's value.
            num_items_in_batch: Divisor of the summed loss, as `Trainer` passes it when a step has several batches;
                None for the mean over this batch.
            inputs_embeds: Rows of the token embedding, (B, T, D), in place of `input_ids`.
            shift_labels: Target of each position, (B, T), in place of `labels`.
            output_attentions: Whether to return each layer's attention weights, which are then computed without
                a fused kernel; None for the config's value.
            output_hidden_states: Whether to return the residual stream before each block and, last, the state
                that the head reads; or the indices of those to return, the others being None; None for the
                config's value.
            others: Arguments of other models. None and False are ignored, and positions must equal those that the
                model uses itself. Anything else is an error, since a newer transformers may rely on its effect.

        Raises:
            ValueError: If the sequence exceeds the context length, the cache is of another type, or an argument
                is not supported.
        """
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise ValueError("cache and past_key_values are the same argument: pass only one")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        rows = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._find_cache(past_key_values if cache is None else cache, use_cache)
        self._check_extra_arguments(others, rows, attention_mask, cache)
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        positions = self._positions(rows.shape[1], attention_mask, cache)
        weights: list[Tensor] | None = [] if output_attentions else None
        states: list[Tensor] | None = None if output_hidden_states in (None, False) else []
        stream = self._stream(rows, positions, attention_mask, cache, weights, states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(stream[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=None if states is None else _select(states, output_hidden_states),
            attentions=None if weights is None else tuple(weights),
            **{CACHE_FIELD: cache},
        )
        as_dict = config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _find_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """Return the cache to use: the one that was given, a new one, or none."""
        is_replayed = self.training and torch.is_grad_enabled()
        is_replayed &= any(block.gradient_checkpointing for block in self.model.blocks)
        if cache is None:
            default = self.config.use_cache and not self.training
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

    def _positions(self, num_new: int, mask: Tensor | None, cache: Cache | None) -> range:
        """Return the slots of the new tokens, counted from the first token of the text, padding included."""
        past = 0 if cache is None else int(cache.get_seq_length())
        length = past + num_new
        if length > self.model.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len={self.model.config.max_seq_len}")
        if mask is not None and (mask.ndim != 2 or mask.shape[1] < length):
            expected = (
                f"(batch, {length}), one entry per token of the text, the cached ones included"
            )
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, not {expected}")
        is_long = self.model.config.rope.scaling.is_long
        if past and is_long(length) and not is_long(past):
            longest = self.model.config.rope.scaling.original_max_seq_len
            reason = "the cached keys have other frequencies; use use_cache=False"
            raise ValueError(f"the text has become longer than {longest} tokens: {reason}")
        return range(past, length)

    def _check_extra_arguments(
        self,
        others: dict[str, Any],
        rows: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> None:
        past = 0 if cache is None else int(cache.get_seq_length())
        for name, value in others.items():
            if value is None or value is False:
                continue
            if name not in POSITION_ARGUMENTS:
                shown = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"{name}={shown}: {type(self).__name__} has no such argument")
            if not _are_default_positions(value, past, rows, mask):
                reason = "must count the tokens of one text per row from its first token"
                raise ValueError(f"{name}: {reason}; leave it out")

    def _stream(
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
        model = self.model
        slots = torch.arange(span.start, span.stop, device=rows.device)
        positions = slots
        if mask is not None and model.position_embedding is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, span.start : span.stop]
        x = model.place(rows, positions)
        # Rotated positions count from the first slot, padding included: attention depends on differences only.
        tables = RotaryTables.compute(span.stop, model.config, x)
        tables = tables.map(lambda table: table[span.start :])
        eager = weights is not None or self.config._attn_implementation == "eager"
        attention = CacheAttention(cache, slots, mask, eager, weights)
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

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.model.head
        if head is None:
            return self.model.compute_logits(hidden, self.model.head_weight)
        # A head that was wrapped, as for LoRA, is more than its weight.
        return cap_logits(head(hidden), self.model.config.embedding.logit_softcap)


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


__all__ = ["GrowLMConfig", "GrowLMForCausalLM"]
