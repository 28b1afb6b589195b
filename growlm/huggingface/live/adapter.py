"""Connect `growlm.growth` with transformers models (`growth/model_adapters.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from growlm.growth.grow_model import Operator
from growlm.growth.growth_rng import GrowthRng
from growlm.huggingface.live.labeled_view import view_with_labels
from growlm.huggingface.live.live_growth import grow_live_model


class TransformersAdapter:
    """`ModelAdapter` of transformers models."""

    def grow_model(
        self,
        model: PreTrainedModel,
        operators: Sequence[Operator],
        rng: GrowthRng,
        optimizers: Sequence[Optimizer],
        mode: str,
    ) -> tuple[nn.Module, list[Optimizer]]:
        """Return the grown model in the class that fits, and the grown optimizers."""
        return grow_live_model(model, operators, rng, optimizers, mode)

    def label_model(self, model: PreTrainedModel) -> nn.Module:
        """Return a module with labeled parameters whose logits are the model's own."""
        return view_with_labels(model)
