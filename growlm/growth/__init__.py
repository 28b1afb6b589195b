"""Growth: operators, and the one engine behind them. Imports torch, nothing of Lightning, Hydra or W&B."""

from growlm.growth.deepen import Deepen
from growlm.growth.draws import Draws
from growlm.growth.engine import GrowthMap
from growlm.growth.grow import (
    Operator,
    apply_growth,
    grow,
    hyperclone_weight,
    plan_growth,
    scale_bilaterally,
)
from growlm.growth.multiply_experts import MultiplyExperts
from growlm.growth.operators import operators_as_data, operators_from_data
from growlm.growth.optimizer_state import grow_moments
from growlm.growth.upcycle import Upcycle
from growlm.growth.widen import Widen

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
