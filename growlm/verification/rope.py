"""Check 1, RoPE integrity: head size and theta are kept, and query heads still read their key/value heads.

Rotary positions mix the channels of one head, so changing the head size or cutting a head in two changes what
every position means.
"""

from __future__ import annotations

from torch import Tensor, nn

from growlm.growth.growth_map import GrowthMap
from growlm.model.axes import axes_table
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import ModelComparison


def check_rope_integrity(
    old_model: nn.Module,
    new_model: nn.Module,
    probe: Tensor,
    *,
    scale_factor: float | None = None,
    growth_map: GrowthMap | None = None,
) -> CheckReport:
    """Check that heads are copied whole and still read their key/value heads.

    The arguments are those of `ModelComparison`.
    """
    return report_rope_integrity(
        ModelComparison(
            old_model, new_model, probe, growth_map=growth_map, scale_factor=scale_factor
        )
    )


def report_rope_integrity(comparison: ModelComparison) -> CheckReport:
    """Report the RoPE check for models that have been compared already."""
    old, new = comparison.old_config, comparison.new_config
    figures = {
        "head_dim": [old.head_dim, new.head_dim],
        "rope_theta": [old.rope.theta, new.rope.theta],
        "d_model": [old.d_model, new.d_model],
        "n_heads": [old.n_heads, new.n_heads],
        "n_kv_heads": [old.n_kv_heads, new.n_kv_heads],
    }
    problems = []
    if old.head_dim != new.head_dim:
        problems.append(
            f"head_dim changed from {old.head_dim} to {new.head_dim}: scale n_heads with the width instead"
        )
    if old.rope.theta != new.rope.theta:
        problems.append(
            f"rope_theta changed from {old.rope.theta:g} to {new.rope.theta:g}: a growth must keep it"
        )
    elif old.rope != new.rope:
        problems.append(f"rope changed from {old.rope} to {new.rope}: a growth must keep it")
    mismatched = _count_mismatched_heads(comparison)
    if mismatched:
        problems.append(
            f"{mismatched} query heads read a different key/value head than their source does: copy whole groups, "
            "or query heads inside their group"
        )
    expected = comparison.scale_factor
    if expected is not None and round(old.d_model * expected) != new.d_model:
        problems.append(
            f"d_model grew {new.d_model / old.d_model:g} times, expected {expected:g} times"
        )
    if problems:
        return CheckReport("rope", Status.FAILED, "; ".join(problems), figures)
    if not _has_heads(comparison.new_model):
        summary = "no parameter is labeled with query_heads: the model has no attention heads"
        return CheckReport("rope", Status.NOT_APPLICABLE, summary)
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


def _has_heads(model: nn.Module) -> bool:
    rows = axes_table(model).values()
    return any(dim.axis == "query_heads" for row in rows for dim in row.label.dims)


def _count_mismatched_heads(comparison: ModelComparison) -> int:
    old, new = comparison.old_config, comparison.new_config
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
        if query_source[head] >= 0  # a fresh head has no source
    )
