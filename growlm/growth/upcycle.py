"""Upcycle: dense feed-forward blocks become mixtures of experts.

Every expert is a copy of the block it replaces (Sparse Upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055),
and gates sum to one, so the function is kept whatever the router says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from growlm.errors import UserError
from growlm.growth.channels import ChannelMap
from growlm.growth.engine import AxisGrowth, Change
from growlm.limits import check_limits, limits
from growlm.model.config import ModelConfig, check_routing


@dataclass
class Upcycle:
    """Dense to mixture of experts, lossless."""

    num_experts: int = field(default=8, metadata=limits(minimum=2, maximum=4096))
    """Experts per block."""
    top_k: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Experts per token."""
    router_init: str = field(default="normal", metadata=limits(choices=("normal", "zeros")))
    """`zeros` is for proofs: equal logits give the router no gradient and leave most experts unused."""
    router_std: float = field(default=0.02, metadata=limits(above=0.0, maximum=10.0))
    """Standard deviation of a `normal` router."""
    break_ties: bool = True
    """With `zeros`: order equal experts pseudo-randomly, token by token, in the selection only."""

    def change(self, config: ModelConfig) -> Change:
        """What happens to a model of this config.

        Raises:
            UserError: If it has experts already, or a setting is out of bounds.
        """
        check_limits(self)
        check_routing(self.num_experts, self.top_k)
        if config.is_moe:
            raise UserError(
                "num_experts",
                self.num_experts,
                f"the model is a mixture of {config.num_experts} experts already; upcycle a dense one",
            )
        zeros = self.router_init == "zeros"
        experts = ChannelMap.equal_shares(1, torch.zeros(self.num_experts, dtype=torch.long))
        return Change(
            config=replace(
                config,
                num_experts=self.num_experts,
                top_k=self.top_k,
                router_tie_breaking=zeros and self.break_ties,
            ),
            description=[
                f"Feed-forward block of every layer copied to {self.num_experts} experts, "
                f"top-{self.top_k}, router "
                + ("at zero" if zeros else f"normal with standard deviation {self.router_std:g}")
            ],
            axes={"experts": AxisGrowth(experts)},
            fresh_std=0.0 if zeros else self.router_std,
        )
