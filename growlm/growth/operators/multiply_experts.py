"""MultiplyExperts: a mixture of E experts becomes one of f·E, each expert and its router row copied.

With top_k multiplied too, a token uses all copies of the experts it used, each with its part of the gate: exact
(Orthogonal Growth, 2025, arXiv 2510.08008). With fewer it cannot be: gates fall on other sets of experts (Expert
Upcycling, 2026, arXiv 2604.19835).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import AxisGrowth, GrowthSpec, NoiseLevel
from growlm.model.config import ModelConfig, check_routing
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits


@dataclass
class MultiplyExperts:
    """More experts; lossless where `top_k` grows alike."""

    factor: int = field(default=2, metadata=limits(minimum=2, maximum=256))
    """Copies of each expert."""
    top_k: int | None = field(default=None, metadata=limits(minimum=2, maximum=4096))
    """Experts per token afterwards; None for `factor` times as many, which is lossless and costs that much more.
    Any other number is not lossless, and is reported so."""
    noise_std: float = field(default=1e-2, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the noise on the copies' output projections, which sums to zero over the copies of an
    expert; for each matrix capped at the standard deviation of its own entries."""
    tie_breaking_std: float = field(default=1e-3, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the noise on the copies' router rows, where `top_k` is not multiplied: equal rows
    would leave the choice between copies to chance."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """What happens to a model of this config.

        Raises:
            UserError: If it is dense, or a setting is out of bounds.
        """
        check_limits(self)
        if not config.is_moe:
            allowed = "the model has no experts to multiply; upcycle it first"
            raise UserError("factor", self.factor, allowed)
        if config.router_tie_breaking and self.noise_std:
            allowed = "must be 0: ties of a router that began at zeros are broken at random, between copies too"
            raise UserError("noise_std", self.noise_std, allowed)
        num_experts = config.num_experts * self.factor
        top_k = config.top_k * self.factor if self.top_k is None else self.top_k
        check_routing(num_experts, top_k)
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
