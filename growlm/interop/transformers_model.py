"""Models of ours as classes of transformers, for those that transformers has no class of its own for.

An export's folder has two files that import these classes, so that with growlm installed
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` gives a `GrowLMForCausalLM`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from growlm.interop.architectures import GROWLM
from growlm.interop.config_reading import config_from
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM


class GrowLMConfig(PretrainedConfig):
    """`ModelConfig` under the names of Hugging Face, as `GROWLM` in `architectures.py` has them."""

    model_type = GROWLM.model_type

    def __init__(self, **values: Any) -> None:
        shape = ModelConfig()
        defaults = {theirs: getattr(shape, ours) for ours, theirs in GROWLM.names.items()}
        super().__init__(**(defaults | {"use_cache": False} | values))

    def shape(self) -> ModelConfig:
        """The `ModelConfig`.

        Raises:
            UserError: If it cannot be.
        """
        return config_from(GROWLM, self.to_dict(), Path(self.name_or_path or "."))


class GrowLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `TransformerLM`, called as transformers calls its models.

    The loss is the cross-entropy of the next token alone: the router's losses are growlm's training's. There is no
    cache of keys and values, so `generate` computes the whole text for every token.

    Args:
        config: The shape.
    """

    config_class = GrowLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: GrowLMConfig) -> None:
        super().__init__(config)
        self.model = TransformerLM(config.shape())
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
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
        **others: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 where a token is padding, before or after the text.
            labels: (B, T), as transformers has them: the loss shifts them, -100 counts for nothing.
            logits_to_keep: Only of the last so many positions, or of these; 0 for all.
            return_dict: False for a tuple.
            others: What transformers hands to every model; no cache.

        Raises:
            ValueError: If there is padding inside a text, or a cache.
        """
        if others.get("past_key_values") is not None:
            raise ValueError("past_key_values: this model has no cache; use_cache=False")
        stream = self._stream(input_ids, attention_mask)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = nn.functional.linear(stream[:, kept], self.model.head_weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size)
        if not return_dict:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def _stream(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The final stream (B, T, D), texts with padding before them moved to the front while it is computed.

        What comes after a text is never seen by it, and positions are then those of the text alone.
        """
        if mask is None or bool(mask.all()):
            return self.model.final_stream(tokens)
        begins = mask.bool().diff(dim=-1, prepend=mask.new_zeros(len(mask), 1).bool()) & mask.bool()
        if bool((begins.sum(dim=-1) > 1).any()):
            raise ValueError("attention_mask: padding must be before or after the text, not inside")
        slots = torch.arange(tokens.shape[1], device=tokens.device)
        padding = begins.int().argmax(dim=-1, keepdim=True)
        forward, backward = ((slots + sign * padding) % len(slots) for sign in (1, -1))
        stream = self.model.final_stream(tokens.gather(1, forward))
        return stream.gather(1, backward.unsqueeze(-1).expand_as(stream))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """The whole text: there is no cache that would have the beginning."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


__all__ = ["GrowLMConfig", "GrowLMForCausalLM"]
