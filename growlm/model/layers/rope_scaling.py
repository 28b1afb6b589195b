"""Scale rotary frequencies, so that a model reads longer sequences than those it was trained on at first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from growlm.model.config_parts import RopeScalingConfig


def scale_frequencies(
    scaling: RopeScalingConfig, frequencies: Tensor, theta: float, length: int = 1
) -> tuple[Tensor, float]:
    """Return the scaled frequencies, and the factor of the cosines and sines.

    Args:
        scaling: Kind of scaling, and its numbers.
        frequencies: Rotary frequencies in radians per position, highest first, (C/2,).
        theta: Base of the frequencies.
        length: Length of the sequences.
    """
    if scaling.kind == "none":
        return frequencies, 1.0
    if scaling.kind == "linear":  # Chen et al. 2023, arXiv 2306.15595
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _scale_as_llama3(scaling, frequencies), 1.0
    if scaling.kind == "longrope":
        divisors = scaling.long_factors if scaling.is_long(length) else scaling.short_factors
        divided = frequencies / frequencies.new_tensor(divisors)
        return divided, _longrope_factor(scaling)
    return _scale_as_yarn(scaling, frequencies, theta), yarn_attention_factor(scaling)


def _longrope_factor(scaling: RopeScalingConfig) -> float:
    """Return the factor of the cosines and sines: the given one, or that of LongRoPE (arXiv 2402.13753)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len))


def yarn_attention_factor(scaling: RopeScalingConfig) -> float:
    """Return the factor of the cosines and sines: the given one, or that of YaRN (arXiv 2309.00071, eq. 22)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _scale_as_llama3(scaling: RopeScalingConfig, frequencies: Tensor) -> Tensor:
    """Divide low frequencies by the factor and keep high ones, with a ramp between (Llama 3.1, 2024)."""
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _scale_as_yarn(scaling: RopeScalingConfig, frequencies: Tensor, theta: float) -> Tensor:
    """Divide low frequencies by the factor and keep high ones, with a ramp over the index (YaRN, section 3.2)."""
    size = 2 * len(frequencies)

    def index_of(turns: float) -> float:
        """Return the (fractional) index of the frequency that makes `turns` turns over the original length."""
        ratio = scaling.original_max_seq_len / (turns * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(theta))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    steps = torch.arange(len(frequencies), dtype=frequencies.dtype, device=frequencies.device)
    divided = ((steps - first) / max(last - first, 0.001)).clamp(0, 1)
    return divided * frequencies / scaling.factor + (1 - divided) * frequencies
