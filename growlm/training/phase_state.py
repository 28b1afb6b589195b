"""What one phase leaves to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from growlm.growth.optimizer_state import ParameterState
from growlm.growth.transforms.scale_factors import ScaleFactors
from growlm.model.transformer import TransformerLM


@dataclass
class PhaseState:
    """A trained model and its optimizer's moments. The next phase takes both over, and empties this."""

    phase_name: str
    model: TransformerLM | None
    optimizer_states: dict[str, ParameterState]
    """By parameter name."""
    scale_factors: Mapping[str, ScaleFactors] = field(default_factory=dict)
    """By parameter name, after a phase with `optimizer_state: exact`: the scales that the next such phase goes on
    from."""
