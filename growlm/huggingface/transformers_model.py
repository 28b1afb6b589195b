"""Provide transformers classes for growlm models that no class of transformers can represent.

An exported folder has two files that import these classes, so that with growlm installed
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` returns a `GrowLMForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import parse_model_config
from growlm.huggingface.own_class.backbone import CACHE_FIELD, Backbone
from growlm.model.config import ModelConfig
from growlm.model.former_fields import translate_former_fields
from growlm.model.initialization import INIT_STD, initial_distribution
from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.layers.labeled_layers import label_embedding, label_linear
from growlm.model.loss import cap_logits
from growlm.model.transformer import Block, TransformerLM


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

    @property
    def final_logit_softcapping(self) -> float | None:
        """Bound on the logits, under the name by which trainers with a loss of their own look for it."""
        softcap: float | None = self.embedding.get("logit_softcap")
        return softcap

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
        names = dict(zip(GROWLM.wide_modules, (bool(mixtures), biased), strict=True))
        self._keep_in_fp32_modules_strict = {name for name, exists in names.items() if exists}
        if self.model.head is None:  # tools look for a head among the modules; `post_init` ties it
            has_bias = self.model.tied_head_bias is not None
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=has_bias)
            self._tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}
            if has_bias:
                self._tied_weights_keys["lm_head.bias"] = "model.tied_head_bias"
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
        if self.model.head is None:
            self.lm_head.weight = value.weight
            self.lm_head.out_features = value.num_embeddings
            if (bias := self.model.tied_head_bias) is not None and len(bias) != len(value.weight):
                resized = bias.new_zeros(len(value.weight))
                kept = min(len(bias), len(resized))
                resized[:kept] = bias.detach()[:kept]
                self.model.tied_head_bias = nn.Parameter(resized, bias.requires_grad)
                self.lm_head.bias = self.model.tied_head_bias

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head if self.model.head is None else self.model.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output head.

        Raises:
            ValueError: If the head is tied to the embedding, and the new one is not.
        """
        if self.model.head is not None:
            self.model.head = label_linear(value, read="residual", write="vocabulary")
            return
        if value.weight is not self.model.embedding.weight:
            raise ValueError("the head is tied to the embedding: use set_input_embeddings")
        self.lm_head = value

    @property
    def base_model(self) -> Backbone:
        """What comes before the head; `model` is the whole `TransformerLM`."""
        return Backbone(self)

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
        backbone: BaseModelOutputWithPast = self.base_model(
            input_ids,
            attention_mask,
            past_key_values,
            cache,
            use_cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            **others,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(backbone.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=backbone.hidden_states,
            attentions=backbone.attentions,
            **{CACHE_FIELD: getattr(backbone, CACHE_FIELD)},
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _logits(self, hidden: Tensor) -> Tensor:
        # By the module, not by its weight: it may be wrapped, as for LoRA.
        logits = self.get_output_embeddings()(hidden)
        return cap_logits(logits, self.model.config.embedding.logit_softcap)


__all__ = ["CACHE_FIELD", "GrowLMConfig", "GrowLMForCausalLM"]
