"""Growth: operators, and the one engine behind them. Imports torch, nothing of Lightning, Hydra or W&B."""

from growlm.growth.api import (
    Operator,
    apply_growth,
    grow,
    hyperclone_weight,
    plan_growth,
    scale_bilaterally,
)
from growlm.growth.growth_map import GrowthMap
from growlm.growth.growth_rng import Draws
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.registry import operators_as_data, operators_from_data
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import Widen
from growlm.growth.optimizer_state import grow_moments

__all__ = [
    "Deepen",
    "Draws",
    "GrowthMap",
    "MultiplyExperts",
    "Operator",
    "Upcycle",
    "Widen",
    "apply_growth",
    "grow",
    "grow_moments",
    "hyperclone_weight",
    "operators_as_data",
    "operators_from_data",
    "plan_growth",
    "scale_bilaterally",
]
