"""Copy each expert and its router row, so that a mixture of E experts becomes one of f·E experts.

If top_k is multiplied too, a token uses all copies of the experts it used, each with its part of the gate,
which is exact (Orthogonal Growth, 2025, arXiv 2510.08008). With a smaller top_k it cannot be exact: gates
fall on other sets of experts (Expert Upcycling, 2026, arXiv 2604.19835).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import MAX_NOISE_STD, AxisGrowth, GrowthSpec, NoiseLevel
from growlm.growth.operators.registry import register_operator
from growlm.model.config import ModelConfig, check_routing
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits


@register_operator("multiply_experts", order=20)
@dataclass
class MultiplyExperts:
    """Copy each expert of a mixture several times; lossless if `top_k` is multiplied too."""

    factor: int = field(default=2, metadata=limits(minimum=2, maximum=256))
    """Number of copies of each expert."""
    top_k: int | None = field(default=None, metadata=limits(minimum=2, maximum=4096))
    """Number of experts per token afterwards. None multiplies it by `factor`, which is lossless and costs
    that much more. Any other number is reported as not lossless."""
    noise_std: float = field(default=1e-2, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the noise on the copies' output projections, which sums to zero over the copies
    of an expert; capped, for each matrix, at the standard deviation of its own entries."""
    tie_breaking_std: float = field(default=1e-3, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the noise on the copies' router rows if `top_k` is not multiplied: equal rows
    would leave the choice between copies to chance."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return the growth of a model of this config, and the config after it.

        Raises:
            UserError: If the model is dense, or a setting is out of bounds.
        """
        check_limits(self)
        if not config.is_moe:
            reason = "the model has no experts to multiply; upcycle it first"
            raise UserError("factor", self.factor, reason)
        if config.routing.tie_breaking and self.noise_std:
            reason = (
                "must be 0: the router began at zeros and breaks ties at random, between copies too"
            )
            raise UserError("noise_std", self.noise_std, reason)
        num_experts = config.num_experts * self.factor
        top_k = config.top_k * self.factor if self.top_k is None else self.top_k
        check_routing(num_experts, top_k, config.routing.renormalize)
        lossless = top_k == config.top_k * self.factor
        return GrowthSpec(
            config=replace(config, num_experts=num_experts, top_k=top_k),
            description=[
                f"Experts {config.num_experts} → {num_experts}, top-{config.top_k} → top-{top_k}"
                + ("" if lossless else " (not lossless)")
            ],
            lossless=lossless,
            axes={"experts": AxisGrowth(ChannelMap.round_robin(config.num_experts, num_experts))},
            noise=NoiseLevel(self.noise_std) if self.noise_std else None,
            tie_breaking_std=0.0 if lossless else self.tie_breaking_std,
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        return f"×{self.factor} experts"

    @classmethod
    def infer(cls, old: ModelConfig, new: ModelConfig) -> list[MultiplyExperts]:
        """Return the operator that may have multiplied the experts, if there are at least twice as many."""
        if not old.is_moe or new.num_experts < 2 * old.num_experts:
            return []
        factor = new.num_experts // old.num_experts
        top_k = None if new.top_k == old.top_k * factor else new.top_k
        noise_std = 0.0 if old.routing.tie_breaking else MAX_NOISE_STD
        return [cls(factor, top_k, noise_std, MAX_NOISE_STD)]
