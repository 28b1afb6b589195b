"""Run a model of any class on tokens: its logits, and what its routers chose if it reports that."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from growlm.model.axes import axes_table
from growlm.model.layers.routing import Routing
from growlm.runtime.errors import UserError


def compute_logits(
    model: nn.Module, tokens: Tensor, routings: list[Routing] | None = None
) -> Tensor:
    """Return the logits, (B, T, V), of a model that returns them, or an object that has them as `logits`.

    Args:
        model: Model that is called with the tokens.
        tokens: (B, T).
        routings: List that the routings are appended to, first layer first, if `forward` takes a list `routings`.

    Raises:
        UserError: If the model does not return logits.
    """
    arguments = (tokens,) if routings is None or not reports_routings(model) else (tokens, routings)
    out: Any = model(*arguments)
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != tokens.shape:
        found = (
            f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(out).__name__
        )
        reason = (
            f"returns {found} for tokens {tuple(tokens.shape)}; the checks need logits (batch, time, vocabulary), "
            "as a tensor or in an attribute named logits"
        )
        raise UserError("model", type(model).__name__, reason)
    return logits


def reports_routings(model: nn.Module) -> bool:
    """Return whether the model's `forward` takes a list `routings` that it appends each router's choices to."""
    return "routings" in inspect.signature(model.forward).parameters


def explain_no_routings(model: nn.Module) -> str:
    """Return why a run of the model gave no routings."""
    if any(row.label.is_router for row in axes_table(model).values()):
        return "the model does not report what its routers choose: forward has no argument routings"
    return "the model has no router"


def first_tensor(*candidates: Any) -> Tensor:
    """Return the residual stream among a block's arguments or results: the first tensor.

    Raises:
        UserError: If there is none.
    """
    for each in candidates:
        if isinstance(each, Tensor):
            return each
        values = each.values() if isinstance(each, dict) else each
        if isinstance(each, list | tuple | dict) and (
            found := [v for v in values if isinstance(v, Tensor)]
        ):
            return found[0]
    raise UserError(
        "model", "block", "must take and return the residual stream as its first tensor"
    )
