"""Infer the operators that led from one model config to another, for checkpoints that do not name them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from growlm.growth.grow_model import Operator
from growlm.growth.operators.optional_methods import infer_operators
from growlm.growth.operators.registry import available_operators
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError


def iter_candidate_growths(
    old: ModelConfig, new: ModelConfig, refusals: list[UserError] | None = None
) -> Iterator[list[Operator]]:
    """Yield the sequences of operators after which a model has the sizes of `new`, the likeliest first.

    Each registered operator is used at most once, in their order.

    Args:
        old: Config before the growth.
        new: Config after it.
        refusals: List to which the errors of operators are added that cannot be applied.
    """
    classes = [each.operator_class for each in available_operators().values()]
    yield from _iter_sequences(old, new, classes, [] if refusals is None else refusals)


def _iter_sequences(
    config: ModelConfig,
    new: ModelConfig,
    classes: Sequence[type[Operator]],
    refusals: list[UserError],
) -> Iterator[list[Operator]]:
    if not classes:
        if _has_sizes(config, new):
            yield []
        return
    first, *rest = classes
    for operator in infer_operators(first, config, new):
        try:
            grown = operator.change(config).config
        except UserError as error:
            refusals.append(error)
            continue
        for later in _iter_sequences(grown, new, rest, refusals):
            yield [operator, *later]
    yield from _iter_sequences(config, new, rest, refusals)


def _has_sizes(config: ModelConfig, new: ModelConfig) -> bool:
    """Return whether two models have the same sizes; that of a head is left for the RoPE check to report."""
    if config.n_layers != new.n_layers:
        return False
    return replace(config, head_dim=new.head_dim).axis_sizes() == new.axis_sizes()
