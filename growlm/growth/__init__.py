"""Growth operators and the growth map that applies them; imports torch, but not Lightning, Hydra or W&B."""

from growlm.growth.grow_model import (
    Operator,
    apply_growth,
    build_growth_map,
    grow,
    hyperclone_weight,
    scale_bilaterally,
)
from growlm.growth.growth_map import GrowthMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_protocol import GrowableModel, growth_config_of
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.registry import operators_from_dicts, operators_to_dicts
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import Widen
from growlm.growth.optimizer_state import grow_optimizer_state, register_moment
from growlm.runtime.deprecation import renamed_attributes

__all__ = [
    "Deepen",
    "GrowableModel",
    "GrowthMap",
    "GrowthRng",
    "MultiplyExperts",
    "Operator",
    "Upcycle",
    "Widen",
    "apply_growth",
    "build_growth_map",
    "grow",
    "grow_optimizer_state",
    "growth_config_of",
    "hyperclone_weight",
    "operators_from_dicts",
    "operators_to_dicts",
    "register_moment",
    "scale_bilaterally",
]

__getattr__ = renamed_attributes(
    __name__,
    {
        "Draws": "GrowthRng",
        "grow_moments": "grow_optimizer_state",
        "operators_as_data": "operators_to_dicts",
        "operators_from_data": "operators_from_dicts",
        "plan_growth": "build_growth_map",
    },
)
