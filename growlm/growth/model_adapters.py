"""Find the adapter that grows a model of another library, whose parameters have no axis labels.

An adapter lies above this package and is imported when the first such model comes, by the name of its base class:
`growth/` itself needs torch and numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from torch.optim import Optimizer

from growlm.growth.growth_rng import GrowthRng

if TYPE_CHECKING:
    from growlm.growth.grow_model import Operator

_LIVE = "growlm.huggingface.live.adapter:TransformersAdapter"
ADAPTERS = {
    "transformers.modeling_utils.PreTrainedModel": _LIVE,
    "peft.peft_model.PeftModel": _LIVE,
}
"""Place of the adapter, `module:class`, for each base class of models."""


class ModelAdapter(Protocol):
    """What growth and its checks ask about a model without labels."""

    def grow_model(
        self,
        model: Any,
        operators: Sequence[Operator],
        rng: GrowthRng,
        optimizers: Sequence[Optimizer],
        mode: str,
    ) -> tuple[nn.Module, list[Optimizer]]:
        """Return the grown model, and the optimizers grown in one of the modes of `optimizer_growth.py`.

        Args:
            model: Model to grow; it is left as it is, as are the optimizers.
            operators: Operators, applied in order.
            rng: Random state of the growth.
            optimizers: Optimizers of the model.
            mode: Mode of the optimizers' growth.
        """

    def label_model(self, model: Any) -> nn.Module:
        """Return a module with labeled parameters that computes the same, for the checks; it may share memory."""


def has_model_adapter(model: object) -> bool:
    """Return whether a model is of another library, and an adapter grows it."""
    return _find_place(model) is not None


def find_model_adapter(model: object) -> ModelAdapter | None:
    """Return the adapter of a model, or None if it is to have labels itself."""
    place = _find_place(model)
    if place is None:
        return None
    module, _, name = place.partition(":")
    adapter: ModelAdapter = getattr(import_module(module), name)()
    return adapter


def _find_place(model: object) -> str | None:
    if hasattr(model, "with_growth_config"):  # a class with the growth protocol of its own
        return None
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__)
    return next((ADAPTERS[name] for name in names if name in ADAPTERS), None)


def with_labels(model: nn.Module) -> nn.Module:
    """Return the model itself, or the labeled one of its adapter."""
    adapter = find_model_adapter(model)
    return model if adapter is None else adapter.label_model(model)
