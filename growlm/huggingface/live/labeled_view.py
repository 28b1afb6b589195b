"""Show a transformers model as a labeled one, so that the checks of growth can run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from growlm.huggingface.live.live_model import read_live_model
from growlm.model.config import ModelConfig
from growlm.model.layers.routing import Routing
from growlm.model.transformer import TransformerLM


class LabeledView(TransformerLM):
    """A `TransformerLM` with the weights of a transformers model, whose logits are that model's own.

    The residual streams and the choices of experts that the checks read are `TransformerLM`'s.

    Args:
        config: Config of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._viewed: list[PreTrainedModel] = []  # in a list: its parameters are not this model's

    def forward(
        self,
        tokens: Tensor,
        routings: list[Routing] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the transformers model's logits, (B, T) -> (B, T, V)."""
        super().forward(tokens, routings, positions)
        logits: Tensor = self._viewed[0](input_ids=tokens, use_cache=False).logits
        return logits

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Yield the modules of both models: the checks perturb them all to measure rounding."""
        yield from super().modules(remove_duplicate)
        for model in getattr(self, "_viewed", ()):
            yield from model.modules()

    def train(self, mode: bool = True) -> LabeledView:
        """Set the mode of both models."""
        for model in getattr(self, "_viewed", ()):
            model.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for model in getattr(self, "_viewed", ()):
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)


def view_with_labels(model: PreTrainedModel) -> LabeledView:
    """Return a labeled view of a transformers model; tensors of the same shape share its memory.

    Raises:
        UserError: If growlm cannot represent the model.
    """
    live = read_live_model(model)
    with torch.device("meta"):
        view = LabeledView(live.config)
    weights = {name: live.tensors.read(name) for name in live.tensors.names}
    view.load_state_dict(weights, assign=True)
    view._viewed.append(model)
    return view.train(model.training)
