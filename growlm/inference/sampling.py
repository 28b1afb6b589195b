"""From logits to the next token: greedy, or drawn after the usual filters.

Shapes: B sequences, V vocabulary, N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from growlm.runtime.field_limits import limits

BELOW_ONE = 1 - 2**-40
"""A draw times this stays below the sum of all probabilities, however that is rounded."""

MIN_TEMPERATURE = 1e-30
"""A lower temperature draws as this one does. Its inverse, which a GPU multiplies by, is finite in fp32."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The filters apply in the order of the fields."""

    repetition_penalty: float = field(default=1.0, metadata=limits(above=0.0, maximum=100.0))
    """Of tokens that the text has already, positive logits are divided by this, negative ones multiplied (Keskar
    et al. 2019, arXiv 1909.05858, section 4.1); 1 for none."""
    temperature: float = field(default=1.0, metadata=limits(minimum=0.0, maximum=100.0))
    """Divides the logits; 0 takes the likeliest token, and the filters below change nothing then."""
    top_k: int = field(default=0, metadata=limits(minimum=0))
    """Draw from the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833); 0 for all."""
    top_p: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Draw from the fewest tokens whose probabilities sum to at least p (Holtzman et al. 2019, arXiv 1904.09751);
    1 for all."""


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of the tokens that are `seen` (B, V)."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def filter_candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """What may be drawn, and how likely.

    Args:
        logits: (B, V).
        sampling: Its temperature is above 0.

    Returns:
        Probabilities (B, N), and the token ids (B, N) they belong to; None where those are 0 to V.
    """
    # The likeliest at 0: however small the temperature, what is divided by it only falls.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, MIN_TEMPERATURE)
    vocabulary = logits.shape[-1]
    ids: Tensor | None = None
    if 0 < sampling.top_k < vocabulary:
        logits, ids = logits.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        logits, ids = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:  # likeliest first by now
        likelier = probabilities.cumsum(dim=-1) - probabilities
        likelier[:, 0] = 0.0
        probabilities = probabilities.masked_fill(likelier >= sampling.top_p, 0.0)
    return probabilities, ids


def sample_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """A token for each sequence.

    Args:
        logits: (B, V), at least fp32.
        sampling: How. Repetition is the caller's (`penalise_repetition`).
        draws: (B,) in fp64, even in [0, 1); not looked at where the temperature is 0.

    Returns:
        (B,); −1 where the logits hold a NaN, or none is finite.
    """
    if sampling.temperature == 0 or uniforms is None:
        best, tokens = logits.max(dim=-1)
        return torch.where(best.isfinite(), tokens, -1)
    probabilities, ids = filter_candidates(logits, sampling)
    mass = probabilities.cumsum(dim=-1, dtype=torch.float64)
    target = uniforms.unsqueeze(1) * mass[:, -1:] * BELOW_ONE
    places = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)
    tokens = places if ids is None else ids.gather(-1, places)
    return torch.where(mass[:, -1].isfinite(), tokens.squeeze(1), -1)
