"""Sampling of the next token from logits: greedy, or random with the usual filters.

Shapes: B sequences, V vocabulary, N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from growlm.runtime.field_limits import limits

BELOW_ONE = 1 - 2**-40
"""Factor that keeps a random number times the sum of all probabilities below that sum, despite rounding."""

MIN_TEMPERATURE = 1e-30
"""Lower temperatures are raised to this one, whose inverse (a GPU multiplies by it) is finite in fp32."""


@dataclass(frozen=True)
class Sampling:
    """Settings for choosing tokens. The filters apply in the order of the fields."""

    repetition_penalty: float = field(default=1.0, metadata=limits(above=0.0, maximum=100.0))
    """Penalty of tokens that the text already contains; 1 for none.

    Their positive logits are divided by it, negative ones multiplied (Keskar et al. 2019, arXiv 1909.05858,
    section 4.1)."""
    temperature: float = field(default=1.0, metadata=limits(minimum=0.0, maximum=100.0))
    """Divisor of the logits; 0 takes the likeliest token, and the filters below have no effect then."""
    top_k: int = field(default=0, metadata=limits(minimum=0))
    """Number of likeliest tokens to sample from (Fan et al. 2018, arXiv 1805.04833); 0 for all."""
    top_p: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Probability mass to sample from; 1 for all.

    The candidates are the fewest tokens whose probabilities sum to at least p (Holtzman et al. 2019,
    arXiv 1904.09751)."""


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of the tokens that are `seen` (B, V)."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def filter_candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return the candidate tokens and their probabilities.

    Args:
        logits: (B, V).
        sampling: Settings with a temperature above 0.

    Returns:
        Probabilities, (B, N), and the token ids they belong to, (B, N); None if these are 0 ... V-1.
    """
    # Shifted so that the maximum is 0: then no temperature, however small, overflows to +inf.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)
    vocabulary = logits.shape[-1]
    ids: Tensor | None = None
    if 0 < sampling.top_k < vocabulary:
        logits, ids = logits.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        logits, ids = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:  # sorted by now, likeliest first
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        mass_before[:, 0] = 0.0
        probabilities = probabilities.masked_fill(mass_before >= sampling.top_p, 0.0)
    return probabilities, ids


def sample_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """Choose one token per sequence.

    Args:
        logits: (B, V), at least fp32.
        sampling: Settings. The caller applies the repetition penalty (`apply_repetition_penalty`).
        uniforms: Uniform random numbers in [0, 1), (B,), fp64; ignored if the temperature is 0.

    Returns:
        Token ids, (B,); −1 if the logits contain a NaN, or none is finite.
    """
    if sampling.temperature == 0 or uniforms is None:
        best, tokens = logits.max(dim=-1)
        return torch.where(best.isfinite(), tokens, -1)
    probabilities, ids = filter_candidates(logits, sampling)
    mass = probabilities.cumsum(dim=-1, dtype=torch.float64)
    target = uniforms.unsqueeze(1) * mass[:, -1:] * BELOW_ONE
    indices = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)
    tokens = indices if ids is None else ids.gather(-1, indices)
    return torch.where(mass[:, -1].isfinite(), tokens.squeeze(1), -1)
