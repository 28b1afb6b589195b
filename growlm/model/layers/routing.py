"""The decisions of a router for a batch, with the gates, losses and health measures that follow from them.

Shapes: N tokens (batch × time), E experts, K chosen experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growlm.model.keyed_rng import keyed_generator


@dataclass(frozen=True)
class Routing:
    """One router's decisions for a batch of tokens."""

    logits: Tensor
    """Router logits, (N, E), at least fp32."""
    selected_experts: Tensor
    """Expert indices, (N, K), best first."""
    gates: Tensor
    """Gates, (N, K); they sum to one over K if they are renormalized."""
    scores: Tensor
    """Selection scores, (N, E): the logits plus the selection bias, if there is one."""

    @property
    def num_experts(self) -> int:
        """Number of experts, E."""
        return self.logits.shape[-1]

    def expert_load(self) -> Tensor:
        """Return the share of all assignments that went to each expert, (E,); no gradient."""
        counts = torch.bincount(self.selected_experts.flatten(), minlength=self.num_experts)
        return counts.to(self.logits.dtype) / self.selected_experts.numel()

    def balance_loss(self, expert_load: Tensor | None = None) -> Tensor:
        """Return E · Σ f_i · P_i over the micro-batch: f the load, P the mean gate probability; 1 when balanced.

        Fedus et al. 2021 (arXiv 2101.03961), equations 4 to 6.

        Args:
            expert_load: Load of the whole micro-batch, (E,), if this routing covers only a part of its tokens. The
                mean of the parts' losses then equals the loss of the whole.
        """
        mean_probability = self.logits.softmax(dim=-1).mean(dim=0)
        expert_load = self.expert_load() if expert_load is None else expert_load
        return self.num_experts * (expert_load * mean_probability).sum()

    def z_loss(self) -> Tensor:
        """Return the mean squared log-partition (Zoph et al. 2022, arXiv 2202.08906, equation 5)."""
        return self.logits.logsumexp(dim=-1).square().mean()

    def selection_margin(self) -> Tensor:
        """Return the score gap between the last chosen and the best rejected expert, (N,).

        It is inf if no expert is rejected.
        """
        top_k = self.selected_experts.shape[-1]
        if top_k == self.num_experts:
            return torch.full_like(self.scores[:, 0], torch.inf)
        best = self.scores.topk(top_k + 1, dim=-1).values
        return best[:, -2] - best[:, -1]

    def is_tied(self) -> Tensor:
        """Return whether equal scores affected a token's routing, (N,).

        That is so if two chosen experts tie, or the last chosen ties with the next.
        """
        best = self.scores.topk(
            min(self.selected_experts.shape[-1] + 1, self.num_experts), dim=-1
        ).values
        return (best[:, 1:] == best[:, :-1]).any(dim=-1)


class RoutingLog:
    """The routings of one forward pass, first layer first.

    Not a list, because FSDP2 looks into the lists that a block is given and passes on copies where gradients flow.
    """

    def __init__(self) -> None:
        self.routings: list[Routing] = []

    def append(self, routing: Routing) -> None:
        """Append one layer's routing."""
        self.routings.append(routing)


def route(
    logits: Tensor,
    top_k: int,
    break_ties: bool,
    selection_bias: Tensor | None = None,
    sequence_length: int | None = None,
    renormalize: bool = True,
    positions: Tensor | None = None,
) -> Routing:
    """Choose the top K experts, whose gates are their softmax probabilities.

    Args:
        logits: (N, E), at least fp32.
        top_k: K.
        break_ties: Whether experts with equal logits are ordered pseudo-randomly, position by position. It
            affects the selection only, and is the same at every call.
        selection_bias: (E,), added to the logits for selection only.
        sequence_length: Length of the sequences that the tokens belong to; N if not given. Ties are broken alike
            in all sequences, so that the result does not depend on which sequences are in a batch.
        renormalize: Whether the gates of a token are divided by their sum.
        positions: Position of each token in its packed document, (B, T), by which ties are then broken.
    """
    scores = logits.detach()
    if selection_bias is not None:
        scores = scores + selection_bias.to(scores)
    ordered = scores
    if break_ties:
        shape = (sequence_length or len(logits), logits.shape[1])
        order = torch.rand(shape, generator=keyed_generator("router ties"))
        order = order.to(logits)
        order = order.repeat(len(logits) // shape[0], 1) if positions is None else order[positions]
        ordered = scores + 1e-6 * order.view_as(scores)
    chosen = ordered.topk(top_k, dim=-1).indices
    if not renormalize:
        return Routing(logits, chosen, logits.softmax(dim=-1).gather(-1, chosen), scores)
    # The softmax over the chosen logits equals the renormalized top-k of the full softmax.
    return Routing(logits, chosen, logits.gather(-1, chosen).softmax(dim=-1), scores)


@dataclass(frozen=True)
class RouterHealth:
    """Health measures of all routers over a batch."""

    dead_experts: int
    """Number of experts, over all layers, that got no token."""
    load_entropy: float
    """Entropy of the load divided by its maximum ln E, mean over layers; 1 is even."""
    max_load: float
    """Largest load of any expert, times E; 1 is even."""


def compute_router_health(loads: Tensor) -> RouterHealth:
    """Compute health measures from the loads of all layers, (layers, E)."""
    loads = loads.float()
    num_experts = loads.shape[-1]
    entropy = torch.special.entr(loads).sum(dim=-1) / torch.log(torch.tensor(float(num_experts)))
    return RouterHealth(
        dead_experts=int((loads == 0).sum()),
        load_entropy=float(entropy.mean()),
        max_load=float(loads.max() * num_experts),
    )
