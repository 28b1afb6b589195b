"""Check 1, RoPE integrity: heads are copied whole, and every head still reads the key/value head it read.

Rotary positions mix the channels of one head, so a changed head size, or a head cut in two, changes what every
position means.
"""

from __future__ import annotations

from torch import Tensor

from growlm.growth.growth_map import GrowthMap
from growlm.model.transformer import TransformerLM
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison


def check_rope_integrity(
    old_model: TransformerLM,
    new_model: TransformerLM,
    probe: Tensor,
    *,
    scale_factor: float | None = None,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """See the module; arguments as `Comparison`."""
    return report_rope_integrity(
        ModelComparison(
            old_model, new_model, probe, growth_map=growth_map, scale_factor=scale_factor
        )
    )


def report_rope_integrity(comparison: ModelComparison) -> CheckReport:
    """The check on models that are compared already."""
    old, new = comparison.old_model.config, comparison.new_model.config
    figures = {
        "head_dim": [old.head_dim, new.head_dim],
        "rope_theta": [old.rope_theta, new.rope_theta],
        "d_model": [old.d_model, new.d_model],
        "n_heads": [old.n_heads, new.n_heads],
        "n_kv_heads": [old.n_kv_heads, new.n_kv_heads],
    }
    problems = []
    if old.head_dim != new.head_dim:
        problems.append(
            f"head_dim changed from {old.head_dim} to {new.head_dim}: scale n_heads with the width instead"
        )
    if old.rope_theta != new.rope_theta:
        problems.append(
            f"rope_theta changed from {old.rope_theta:g} to {new.rope_theta:g}: keep it through a growth"
        )
    strayed = _count_strayed_heads(comparison)
    if strayed:
        problems.append(
            f"{strayed} query heads read another key/value head than their source: copy whole groups, or query "
            "heads inside their group"
        )
    wanted = comparison.scale_factor
    if wanted is not None and round(old.d_model * wanted) != new.d_model:
        problems.append(
            f"d_model grew {new.d_model / old.d_model:g} times, expected {wanted:g} times"
        )
    if problems:
        return CheckReport("rope", Status.FAILED, "; ".join(problems), figures)
    heads = (
        f"heads {old.n_heads} → {new.n_heads}"
        if old.n_heads != new.n_heads
        else f"{new.n_heads} heads"
    )
    return CheckReport(
        "rope",
        Status.PASSED,
        f"head size {new.head_dim} kept, {heads}, groups intact",
        figures,
    )


def _count_strayed_heads(comparison: ModelComparison) -> int:
    old, new = comparison.old_model.config, comparison.new_model.config
    axes = comparison.growth_map.axes
    if old.head_dim != new.head_dim or "query_heads" not in axes:
        return 0
    dim = new.head_dim
    query_source = axes["query_heads"].source[::dim] // dim
    kv_source = (
        axes["key_value_heads"].source[::dim] // dim
        if "key_value_heads" in axes
        else range(old.n_kv_heads)
    )
    new_group, old_group = new.n_heads // new.n_kv_heads, old.n_heads // old.n_kv_heads
    return sum(
        int(kv_source[head // new_group]) != int(query_source[head]) // old_group
        for head in range(new.n_heads)
        if query_source[head] >= 0  # a fresh one has no source
    )
