"""Growth operators and the growth map that applies them; imports torch, but not Lightning, Hydra or W&B."""

from growlm.growth.channel_map import ChannelMap
from growlm.growth.grow_model import (
    Operator,
    apply_growth,
    build_growth_map,
    grow,
    hyperclone_weight,
    scale_bilaterally,
)
from growlm.growth.growth_map import (
    MAX_NOISE_STD,
    AxisGrowth,
    BlockOrigin,
    GrowthMap,
    GrowthSpec,
    NoiseLevel,
    UpcycleSpec,
)
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_protocol import GrowableModel, growth_config_of
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.registry import (
    operators_from_dicts,
    operators_to_dicts,
    register_operator,
)
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import Widen
from growlm.growth.optimizer_state import grow_optimizer_state, register_moment
from growlm.runtime.deprecation import renamed_attributes
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits

__all__ = [
    "MAX_NOISE_STD",
    "AxisGrowth",
    "BlockOrigin",
    "ChannelMap",
    "Deepen",
    "GrowableModel",
    "GrowthMap",
    "GrowthRng",
    "GrowthSpec",
    "MultiplyExperts",
    "NoiseLevel",
    "Operator",
    "Upcycle",
    "UpcycleSpec",
    "UserError",
    "Widen",
    "apply_growth",
    "build_growth_map",
    "check_limits",
    "grow",
    "grow_optimizer_state",
    "growth_config_of",
    "hyperclone_weight",
    "limits",
    "operators_from_dicts",
    "operators_to_dicts",
    "register_moment",
    "register_operator",
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
