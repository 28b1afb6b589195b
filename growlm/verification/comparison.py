"""Two models on one probe, aligned by the growth that led from one to the other.

Runs are in eval mode, without autocast or TF32: under bf16 even a correct widening of a mixture of experts
moves logits by more than 1, because a rounded router chooses other experts.

Shapes: B sequences, T time, N = B·T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growlm.growth.deepen import Deepen
from growlm.growth.engine import GrowthMap
from growlm.growth.grow import Operator, plan_growth
from growlm.growth.multiply_experts import MultiplyExperts
from growlm.growth.upcycle import Upcycle
from growlm.growth.widen import Widen
from growlm.model.config import ModelConfig
from growlm.model.routing import Routing
from growlm.model.transformer import TransformerLM

NEAR_TIE = 1e-4
"""Below this distance of router logits, rounding may decide which expert is chosen."""


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Eval mode, no autocast, no TF32, for the time of the block."""
    was_training = model.training
    tf32 = torch.backends.cuda.matmul.allow_tf32
    device_type = next(model.parameters()).device.type
    model.eval()
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        model.train(was_training)


def probe_loss(logits: Tensor, probe: Tensor) -> Tensor:
    """Mean next-token cross-entropy inside the probe, (B, T, V) and (B, T) -> scalar."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), probe[:, 1:].flatten())


@dataclass(frozen=True)
class Trace:
    """What one model did on the probe."""

    embeddings: Tensor
    """(B, T, D)"""
    streams: list[Tensor]
    """The residual stream after each block, (B, T, D)."""
    routings: list[Routing]
    """One per mixture-of-experts block."""
    logits: Tensor
    """(B, T, V)"""
    loss: float

    @staticmethod
    def of(model: TransformerLM, probe: Tensor) -> Trace:
        """Run `model` on `probe` (B, T)."""
        streams: list[Tensor] = []
        embeddings: list[Tensor] = []
        routings: list[Routing] = []
        hooks = [model.embedding.register_forward_hook(lambda _m, _i, out: embeddings.append(out))]
        hooks += [
            block.register_forward_hook(lambda _m, _i, out: streams.append(out))
            for block in model.blocks
        ]
        try:
            with exact_arithmetic(model), torch.no_grad():
                logits = model(probe, routings)
                loss = float(probe_loss(logits, probe))
        finally:
            for hook in hooks:
                hook.remove()
        return Trace(embeddings[0], streams, routings, logits, loss)


@dataclass(frozen=True)
class ChangedChoices:
    """Where the grown model's routers chose other experts."""

    reached: list[Tensor]
    """Per new block, (B, T): positions of its output that a near tie here or before can have changed."""
    near_ties: int
    """Changed choices with a margin below `NEAR_TIE`."""
    hard: int
    """Changed choices with a larger margin, or between copies of tied experts: something is lost."""

    @property
    def compared(self) -> float:
        """Share of the positions that no near tie reaches."""
        return 1.0 - float(self.reached[-1].float().mean())


class Comparison:
    """An old and a grown model on one probe.

    Args:
        old_model: Before.
        new_model: After.
        probe: Tokens, (B, T); moved to the models' device.
        growth_map: How one became the other; inferred from the two configs if not given, which assumes
            that new blocks were appended.
        tolerance: Relative: differences up to tolerance · max(1, max |logit|) are rounding.
        scale_factor: If given, what the width is expected to have grown by.
        stored_as: The precision that the weights were grown in, where they have been brought to another since.

    Raises:
        ValueError: If no growth leads from one config to the other.
    """

    def __init__(
        self,
        old_model: TransformerLM,
        new_model: TransformerLM,
        probe: Tensor,
        *,
        growth_map: GrowthMap | None = None,
        tolerance: float = 1e-4,
        scale_factor: float | None = None,
        stored_as: torch.dtype | None = None,
    ) -> None:
        self.stored_as = stored_as or next(new_model.parameters()).dtype
        self.old_model, self.new_model = old_model, new_model
        self.probe = probe.to(next(new_model.parameters()).device)
        self.growth_map = growth_map or infer_growth(old_model.config, new_model.config)
        self.relative_tolerance = tolerance
        self.scale_factor = scale_factor

    @cached_property
    def old(self) -> Trace:
        """The old model's run."""
        return Trace.of(self.old_model, self.probe)

    @cached_property
    def new(self) -> Trace:
        """The grown model's run."""
        return Trace.of(self.new_model, self.probe)

    @cached_property
    def tolerance(self) -> float:
        """The relative tolerance times max(1, max |logit|)."""
        return self.relative_tolerance * max(1.0, float(self.old.logits.abs().max()))

    def kept_routers(self) -> Iterator[tuple[int, Routing, Routing]]:
        """(new block, old routing, new routing) of every router that both models have."""
        if not self.old.routings or not self.new.routings:
            return
        for block, origin in enumerate(self.growth_map.blocks):
            if origin.kind == "kept":
                yield block, self.old.routings[origin.source], self.new.routings[block]

    @cached_property
    def changed_choices(self) -> ChangedChoices:
        """Compare every choice of experts, following near ties through time and depth."""
        pairs = {block: (old, new) for block, old, new in self.kept_routers()}
        reached = torch.zeros(self.probe.shape, dtype=torch.bool, device=self.probe.device)
        masks, near_ties, hard = [], 0, 0
        for block in range(len(self.growth_map.blocks)):
            if block in pairs:
                old, new = pairs[block]
                changed = self._choices_differ(old, new).view_as(reached) & ~reached
                margin = old.margin().view_as(reached)
                near = changed & (margin < NEAR_TIE)
                if old.num_experts != new.num_experts:
                    near &= margin > 0  # copies have equal scores: only true ties can part them
                near_ties += int(near.sum())
                hard += int((changed & ~near).sum())
                # Attention carries a difference to all later positions of the sequence.
                reached = reached | near.cummax(dim=1).values
            masks.append(reached)
        return ChangedChoices(masks, near_ties, hard)

    @cached_property
    def expert_sources(self) -> Tensor:
        """(new experts,), the old expert that each copies, where both models have some."""
        experts = self.growth_map.axes.get("experts")
        count = self.new_model.config.num_experts
        source = torch.arange(count) if experts is None else experts.source
        return source.to(self.probe.device)

    def _choices_differ(self, old: Routing, new: Routing) -> Tensor:
        """(N,), whether a token uses copies of other experts than it used."""
        copies_chosen, rest = divmod(new.chosen.shape[-1], old.chosen.shape[-1])
        if rest:
            return torch.ones_like(old.chosen[:, 0], dtype=torch.bool)
        used = self.expert_sources[new.chosen].sort().values
        return (old.chosen.repeat(1, copies_chosen).sort().values != used).any(dim=-1)

    @cached_property
    def logit_differences(self) -> Tensor:
        """|new − old| logits at the positions that no near tie reaches, zero elsewhere, (B, T, V)."""
        reached = self.changed_choices.reached[-1].unsqueeze(-1)
        return (self.new.logits - self.old.logits).abs().masked_fill(reached, 0.0)

    @cached_property
    def max_logit_difference(self) -> float:
        """The largest of `logit_differences`; infinite if a logit is not finite."""
        largest = float(self.logit_differences.max())
        return largest if largest == largest else float("inf")


def infer_growth(old: ModelConfig, new: ModelConfig) -> GrowthMap:
    """The growth between two configs: upcycled or experts multiplied, widened, deepened (appended), as needed.

    Raises:
        ValueError: If the operators cannot make one of the other.
    """
    operators: list[Operator] = []
    if new.is_moe and not old.is_moe:
        finer = max(1, old.d_ff // new.d_ff)
        operators.append(Upcycle(new.num_experts // finer, new.top_k // finer, granularity=finer))
    elif old.is_moe and new.num_experts >= 2 * old.num_experts:
        factor = new.num_experts // old.num_experts
        top_k = None if new.top_k == old.top_k * factor else new.top_k
        noise_std = 0.0 if old.router_tie_breaking else 1e-2
        operators.append(MultiplyExperts(factor, top_k, noise_std))
    d_ff = old.d_ff
    if operators:
        d_ff = plan_growth(old, operators).new_config.d_ff
    if (new.d_model, new.n_heads, new.d_ff) != (old.d_model, old.n_heads, d_ff):
        operators.append(Widen(d_model=new.d_model, n_heads=new.n_heads, d_ff=new.d_ff))
    if new.n_layers != old.n_layers:
        operators.append(Deepen(extra_layers=new.n_layers - old.n_layers))
    growth_map = plan_growth(old, operators)
    # A changed head size is for the RoPE check to find.
    if replace(growth_map.new_config, head_dim=new.head_dim).axis_sizes() != new.axis_sizes():
        raise ValueError(f"no known growth makes a model of {new} from one of {old}")
    return growth_map
