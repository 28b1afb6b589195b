"""What one phase leaves to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from growlm.growth.optimizer_state import State
from growlm.growth.transforms.scale_factors import Factors
from growlm.model.transformer import TransformerLM


@dataclass
class HandOff:
    """A trained model and its optimizer's moments. The next phase takes both over, and empties this."""

    phase: str
    model: TransformerLM | None
    states: dict[str, State]
    """By parameter name."""
    factors: Mapping[str, Factors] = field(default_factory=dict)
    """By parameter name, after a phase with `optimizer_state: exact`: the scales that the next such phase goes on
    from."""
