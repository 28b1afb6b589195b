"""Counts of a model's parameters and floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from growlm.model.axes import Role, axes_table
from growlm.model.config import ModelConfig
from growlm.model.initialization import is_matrix
from growlm.model.transformer import TransformerLM


@dataclass(frozen=True)
class ParameterReport:
    """A model's parameter counts, in total and per token."""

    total: int
    active: int
    """Parameters that each token uses: all but the experts that are not chosen."""
    idle_experts: int
    """Number of experts, over all layers, that a token does not use."""
    num_experts: int
    top_k: int
    flops_per_token_forward: int
    """Forward FLOPs per token: two per entry of every matrix it is multiplied with, without attention scores."""

    @property
    def inactive(self) -> int:
        """Parameters that a token does not use."""
        return self.total - self.active

    @property
    def efficiency(self) -> float:
        """Share of the parameters that a token uses."""
        return self.active / self.total


def parameter_report(model: nn.Module | ModelConfig) -> ParameterReport:
    """Count the parameters of a model, or of the `TransformerLM` that a config describes (without allocating it).

    A model of one's own has the method `growth_config` (docs/own_models.md).
    """
    if isinstance(model, ModelConfig):
        return _cached_report(model)
    describe = getattr(model, "growth_config", None)
    config: ModelConfig = model.config if describe is None else describe()  # type: ignore[assignment]
    total = active = multiplied = 0
    table = axes_table(model)
    for row in (table[name] for name, _ in model.named_parameters()):
        size = torch.Size(row.shape).numel()
        is_expert = row.label.stacked_from is not None
        used = size // config.num_experts * config.top_k if is_expert else size
        total, active = total + size, active + used
        is_tied_head = row.label.has(Role.INDEX, "vocabulary") and config.tie_embeddings
        if is_matrix(row.label) and (is_tied_head or not row.label.is_lookup):
            multiplied += used
    idle = len(config.mixtures) * (config.num_experts - config.top_k)
    return ParameterReport(
        total=total,
        active=active,
        idle_experts=idle,
        num_experts=config.num_experts,
        top_k=config.top_k if config.is_moe else 0,
        flops_per_token_forward=2 * multiplied,
    )


@lru_cache(maxsize=64)
def _cached_report(config: ModelConfig) -> ParameterReport:
    with torch.device("meta"):
        return parameter_report(TransformerLM(config))


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Return the FLOPs of the forward and backward pass for one token of a sequence.

    This is three times the forward pass. The scores and the weighted sum of attention are counted over the whole
    T × T square, as in `torch.utils.flop_counter`.
    """
    attention = 2 * 2 * config.n_layers * config.n_heads * config.head_dim * sequence_length
    return 3 * (parameter_report(config).flops_per_token_forward + attention)
