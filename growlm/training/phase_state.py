"""Define `PhaseState`: the model and optimizer state that one phase passes to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from growlm.growth.optimizer_state import ParameterState
from growlm.growth.transforms.scale_factors import ScaleFactors
from growlm.model.transformer import TransformerLM


@dataclass
class PhaseState:
    """A trained model and its optimizer's moments; the next phase takes both and empties this object."""

    phase_name: str
    model: TransformerLM | None
    optimizer_states: dict[str, ParameterState]
    """Moments, by parameter name."""
    scale_factors: Mapping[str, ScaleFactors] = field(default_factory=dict)
    """Scale factors by parameter name, after a phase with `optimizer_state: exact`; the next such phase continues
    from them."""
