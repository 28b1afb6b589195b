"""Turn dense feed-forward blocks into mixtures of experts.

Every expert is a copy of the block it replaces (Sparse Upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055),
and gates sum to one, so the function is kept whatever the router computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import MAX_NOISE_STD, AxisGrowth, GrowthSpec, UpcycleSpec
from growlm.growth.operators.registry import register_operator
from growlm.model.config import ModelConfig, check_routing
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits
from growlm.runtime.number_format import format_share


@register_operator("upcycle", order=10)
@dataclass
class Upcycle:
    """Turn dense feed-forward layers into a mixture of experts; lossless unless units are reinitialized."""

    num_experts: int = field(default=8, metadata=limits(minimum=2, maximum=4096))
    """Number of copies of each block."""
    top_k: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Number of copies that each token uses."""
    router_init: str = field(default="normal", metadata=limits(choices=("normal", "zeros")))
    """Initialization of the router. `zeros` is for proofs: equal logits give the router no gradient and leave
    most experts unused."""
    router_std: float = field(default=0.02, metadata=limits(above=0.0, maximum=10.0))
    """Standard deviation of a `normal` router."""
    break_ties: bool = True
    """With `zeros`: whether the selection (not the gates) orders equal experts pseudo-randomly, token by
    token."""
    granularity: int = field(default=1, metadata=limits(minimum=1, maximum=256))
    """Fine-grained experts (He et al. 2024, arXiv 2410.07524): every copy is split into this many experts
    with fewer hidden units, and tokens use that many times more of them. Lossless: the router's rows are
    equal inside such a virtual group, so that a token begins with whole copies, and the output projections
    are scaled up. The published caveats: without that grouping and scaling the loss starts high, and the gain
    depends on the recipe. Each token costs more routing and smaller matrix products."""
    drop_fraction: float = field(default=0.0, metadata=limits(minimum=0.0, below=1.0))
    """Drop-Upcycling (Nakamura et al. 2025, arXiv 2502.19261): this fraction of each expert's hidden units is
    reinitialized, the same units in all its matrices, so that experts specialize sooner. Not lossless. The
    published caveats: 0.5 was best, the loss starts higher, and the advantage over plain upcycling appears
    only after long training."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return the growth of a model of this config, and the config after it.

        Raises:
            UserError: If the model has experts already, or a setting is out of bounds.
        """
        check_limits(self)
        check_routing(self.num_experts, self.top_k)
        if config.is_moe:
            raise UserError(
                "num_experts",
                self.num_experts,
                f"the model has {config.num_experts} experts already; upcycle a dense model, or use "
                "multiply_experts",
            )
        if not config.routing.renormalize:
            reason = (
                "the model has routing.renormalize=false, and only gates that sum to one keep the function of "
                "equal experts"
            )
            raise UserError("num_experts", self.num_experts, reason)
        if config.routing.shared_gate:
            reason = "the model has routing.shared_gate=true, and an upcycled mixture has no shared expert"
            raise UserError("num_experts", self.num_experts, reason)
        if config.d_ff % self.granularity:
            reason = f"must divide d_ff={config.d_ff}, the number of hidden units"
            raise UserError("granularity", self.granularity, reason)
        zeros = self.router_init == "zeros"
        if zeros and self.break_ties and self.granularity > 1:
            reason = "must be 1 with router_init=zeros: ties broken at random would break up copies"
            raise UserError("granularity", self.granularity, reason)
        experts = self.num_experts * self.granularity
        shards = ChannelMap.round_robin(self.granularity, experts)
        group = torch.arange(experts) // self.granularity
        return GrowthSpec(
            config=replace(
                config,
                num_experts=experts,
                top_k=self.top_k * self.granularity,
                d_ff=config.d_ff // self.granularity,
                routing=replace(config.routing, tie_breaking=zeros and self.break_ties),
            ),
            description=self._describe(),
            lossless=self.drop_fraction == 0,
            axes={"experts": AxisGrowth(shards)},
            upcycle=UpcycleSpec(
                segments=shards,
                router_rows=ChannelMap.with_equal_shares(self.num_experts, group),
                router_std=0.0 if zeros else self.router_std,
                reinitialized_fraction=self.drop_fraction,
            ),
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        return f"{self.num_experts} experts"

    @classmethod
    def infer(cls, old: ModelConfig, new: ModelConfig) -> list[Upcycle]:
        """Return the operator that may have made a dense model a mixture; smaller experts are finer ones."""
        if old.is_moe or not new.is_moe:
            return []
        finer = max(1, old.d_ff // new.d_ff)
        experts, top_k = new.num_experts // finer, new.top_k // finer
        return [cls(experts, top_k, router_std=MAX_NOISE_STD, granularity=finer)]

    def _describe(self) -> list[str]:
        router = (
            "zeros"
            if self.router_init == "zeros"
            else f"normal, standard deviation {self.router_std:g}"
        )
        lines = [
            f"Feed-forward blocks copied to {self.num_experts} experts, top-{self.top_k}; router init: {router}"
        ]
        if self.granularity > 1:
            lines.append(
                f"Every copy split into {self.granularity} experts: {self.num_experts * self.granularity} "
                f"in total, top-{self.top_k * self.granularity}"
            )
        if self.drop_fraction:
            lines.append(
                f"{format_share(self.drop_fraction)} of each expert's units reinitialized (not lossless)"
            )
        return lines
