"""Checks of whether a growth lost anything; they return reports and print nothing."""

from growlm.runtime.deprecation import renamed_attributes
from growlm.verification.check_report import CheckReport, GrowthReport, Status
from growlm.verification.comparison import ModelComparison, infer_growth_from_configs
from growlm.verification.equivalence import EquivalenceReport, verify_functional_equivalence
from growlm.verification.functional import check_functional_identity_layerwise
from growlm.verification.growth_check import detailed_growth_check
from growlm.verification.rope import check_rope_integrity
from growlm.verification.router import check_router_scaling
from growlm.verification.router_collapse import check_router_collapse
from growlm.verification.sanity import SanityReport, quick_sanity_check
from growlm.verification.symmetry import check_symmetry_breaking
from growlm.verification.weights import check_weight_integrity

__all__ = [
    "CheckReport",
    "EquivalenceReport",
    "GrowthReport",
    "ModelComparison",
    "SanityReport",
    "Status",
    "check_functional_identity_layerwise",
    "check_rope_integrity",
    "check_router_collapse",
    "check_router_scaling",
    "check_symmetry_breaking",
    "check_weight_integrity",
    "detailed_growth_check",
    "infer_growth_from_configs",
    "quick_sanity_check",
    "verify_functional_equivalence",
]

__getattr__ = renamed_attributes(
    __name__,
    {
        "Comparison": "ModelComparison",
        "check_router_lock": "check_router_collapse",
        "infer_growth": "infer_growth_from_configs",
    },
)
