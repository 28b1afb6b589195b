"""Two models on one probe, aligned by the growth that led from one to the other.

Runs are in eval mode, without autocast or TF32: under bf16 even a correct widening of a mixture of experts
moves logits by more than 1, because a rounded router chooses other experts.

What counts as rounding is a share of the largest logit. Where two models differ by more, it is measured: the
grown model is run once more with every module's output moved by one unit of its precision. Large noise amplifies
rounding, and then a larger difference is nothing lost.

Shapes: B sequences, T time, N = B·T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor, is_sharded
from growlm.growth.api import Operator, build_growth_map
from growlm.growth.growth_map import GrowthMap
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import Widen
from growlm.model.config import ModelConfig
from growlm.model.keyed_rng import keyed_generator
from growlm.model.layers.routing import Routing
from growlm.model.transformer import TransformerLM
from growlm.verification.weights import WeightFaults, find_weight_faults

NEAR_TIE_MARGIN = 1e-4
"""Below this distance of router logits, times the largest of them if that is above 1, rounding may decide which
expert is chosen."""
ROUNDING_SAFETY_FACTOR = 8.0
"""Rounding may move the grown model so many times as far as it was measured to."""


@contextmanager
def full_precision_eval(model: nn.Module) -> Iterator[None]:
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
class ForwardTrace:
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
    def record(model: TransformerLM, probe: Tensor, perturbation: float = 0.0) -> ForwardTrace:
        """Run `model` on `probe` (B, T).

        Args:
            model: The model.
            probe: The tokens.
            rounding: By which share of it every module's output is moved, up or down at random; 0 for none.
        """
        moves = _perturb_outputs(model, perturbation) if perturbation else []
        streams: list[Tensor] = []
        embeddings: list[Tensor] = []
        routings: list[Routing] = []
        hooks = [
            *moves,
            model.embedding.register_forward_hook(lambda _m, _i, out: embeddings.append(out)),
        ]
        hooks += [
            block.register_forward_hook(lambda _m, _i, out: streams.append(out))
            for block in model.blocks
        ]
        try:
            with full_precision_eval(model), torch.no_grad():
                logits = model(probe, routings)
                loss = float(probe_loss(logits, probe))
        finally:
            for hook in hooks:
                hook.remove()
        return ForwardTrace(embeddings[0], streams, routings, logits, loss)

    @property
    def is_finite(self) -> bool:
        """Whether no NaN and no infinity was met."""
        seen = [*self.streams, *(routing.logits for routing in self.routings), self.logits]
        return all(bool(x.isfinite().all()) for x in seen)


def _perturb_outputs(model: nn.Module, relative_size: float) -> list[RemovableHandle]:
    generator = keyed_generator("rounding")

    def move(_module: nn.Module, _inputs: object, out: object) -> object:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        signs = torch.randint(2, out.shape, generator=generator).to(out).mul_(2).sub_(1)
        return out * (1 + relative_size * signs)

    leaves = [module for module in model.modules() if not any(module.children())]
    return [leaf.register_forward_hook(move) for leaf in leaves]


@dataclass(frozen=True)
class RoutingChanges:
    """Where the grown model's routers chose other experts."""

    affected_positions: list[Tensor]
    """Per new block, (B, T): positions of its output that a near tie here or before can have changed."""
    near_ties: int
    """Changed choices with a margin that rounding can turn."""
    hard_changes: int
    """Changed choices with a larger margin, or between copies of tied experts that differ: something is lost."""

    def affected_before(self, block: int) -> Tensor:
        """(B, T), positions that a block's router sees changed: those reached by the blocks before."""
        return (
            self.affected_positions[block - 1]
            if block
            else torch.zeros_like(self.affected_positions[0])
        )

    @property
    def compared_fraction(self) -> float:
        """Share of the positions that no near tie reaches."""
        return 1.0 - float(self.affected_positions[-1].float().mean())


@dataclass(frozen=True)
class RoundingBounds:
    """How far rounding may move the grown model, beyond the usual tolerance; measured, times `SAFETY`."""

    streams: list[float]
    """Of the residual stream after each block."""
    routers: dict[int, float]
    """Of the router logits, by block."""
    logits: float


class ModelComparison:
    """An old and a grown model on one probe.

    Args:
        old_model: Before.
        new_model: After.
        probe: Tokens, (B, T); moved to the models' device.
        growth_map: How one became the other; inferred if not given (`infer_growth_of`).
        tolerance: Relative: differences up to tolerance · max(1, max |logit|) are rounding; at least 4 times the
            `eps` of half precision. Where that is exceeded, rounding is measured.
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
        growth_dtype: torch.dtype | None = None,
    ) -> None:
        self.growth_dtype = growth_dtype or next(new_model.parameters()).dtype
        self.old_model, self.new_model = to_at_least_fp32(old_model), to_at_least_fp32(new_model)
        self.probe = probe.to(next(new_model.parameters()).device)
        self.growth_map = growth_map or infer_growth_from_models(
            old_model, new_model, self.growth_dtype
        )
        self.relative_tolerance = max(tolerance, half_precision_tolerance(self.growth_dtype))
        self.scale_factor = scale_factor

    @cached_property
    def old_trace(self) -> ForwardTrace:
        """The old model's run."""
        return ForwardTrace.record(self.old_model, self.probe)

    @cached_property
    def new_trace(self) -> ForwardTrace:
        """The grown model's run."""
        return ForwardTrace.record(self.new_model, self.probe)

    @cached_property
    def tolerance(self) -> float:
        """The relative tolerance times max(1, max |logit|), or what rounding was measured to be."""
        return max(
            self._base_tolerance, self.rounding_bounds.logits if self.rounding_bounds else 0.0
        )

    @property
    def _base_tolerance(self) -> float:
        return self.relative_tolerance * max(1.0, float(self.old_trace.logits.abs().max()))

    @cached_property
    def weight_faults(self) -> WeightFaults:
        """What the grown tensors are, against what the growth map says."""
        old, new = self.old_model.state_dict(), self.new_model.state_dict()
        return find_weight_faults(old, new, self.growth_map, self.growth_dtype)

    @cached_property
    def is_finite(self) -> bool:
        """Whether both runs met no NaN and no infinity."""
        return self.old_trace.is_finite and self.new_trace.is_finite

    @cached_property
    def rounding_bounds(self) -> RoundingBounds | None:
        """What rounding was measured to be; None if the usual tolerance is enough, or no number would be."""
        if not self.growth_map.lossless or not self.is_finite or self._is_within_tolerance():
            return None
        moved = ForwardTrace.record(
            self.new_model, self.probe, perturbation=torch.finfo(self.growth_dtype).eps
        )
        reached = torch.zeros(self.probe.shape, dtype=torch.bool, device=self.probe.device)
        streams, routers = [], {}
        mixtures = iter(zip(self.new_trace.routings, moved.routings, strict=True))
        for block, (plain, other) in enumerate(
            zip(self.new_trace.streams, moved.streams, strict=True)
        ):
            if self.new_trace.routings:
                one, two = next(mixtures)
                excused = reached.view(-1, 1)
                routers[block] = _largest(one.logits - two.logits, excused) * ROUNDING_SAFETY_FACTOR
                parted = one.selected_experts.sort().values != two.selected_experts.sort().values
                reached = reached | parted.any(dim=-1).view_as(reached).cummax(dim=1).values
            streams.append(_largest(plain - other, reached.unsqueeze(-1)) * ROUNDING_SAFETY_FACTOR)
        logits = (
            _largest(self.new_trace.logits - moved.logits, reached.unsqueeze(-1))
            * ROUNDING_SAFETY_FACTOR
        )
        return RoundingBounds(streams, routers, logits)

    def _is_within_tolerance(self) -> bool:
        """Whether all differences are within the usual tolerances."""
        choices = self._compare_routing(None)
        logits = _largest(
            self.new_trace.logits - self.old_trace.logits,
            choices.affected_positions[-1].unsqueeze(-1),
        )
        return (
            not choices.hard_changes
            and logits <= self._base_tolerance
            and all(
                _largest(self.drift(block), choices.affected_positions[block].unsqueeze(-1))
                <= self.drift_tolerance(block, None)
                for block in range(len(self.new_trace.streams))
            )
            and all(
                _largest(
                    self.router_difference(old, new), choices.affected_before(block).view(-1, 1)
                )
                <= self.router_tolerance(block, old, None)
                for block, old, new in self.matched_routers()
            )
        )

    def old_stream(self, block: int) -> Tensor:
        """What the old residual stream held where the new one is after `block`, (B, T, D)."""
        source = self.growth_map.old_block_at(block)
        return self.old_trace.embeddings if source is None else self.old_trace.streams[source]

    def drift(self, block: int) -> Tensor:
        """|new − old| residual stream after a block, (B, T, copies)."""
        return self.stream_difference(self.old_stream(block), self.new_trace.streams[block])

    def stream_difference(self, old: Tensor, new: Tensor) -> Tensor:
        """|new − old| of a residual stream over the channels that copy one, (B, T, copies)."""
        channels = self.growth_map.axes.get("residual")
        if channels is None:
            return (new - old).abs()
        kept = (~channels.is_filler).nonzero().squeeze(1).to(new.device)
        return (new[..., kept] - old[..., channels.source.to(new.device)[kept]]).abs()

    def drift_tolerance(self, block: int, bounds: RoundingBounds | None) -> float:
        """How far the residual stream after a block may be off."""
        usual = self.relative_tolerance * max(1.0, float(self.old_stream(block).abs().max()))
        return max(usual, bounds.streams[block] if bounds else 0.0)

    def router_difference(self, old: Routing, new: Routing) -> Tensor:
        """|new − old| logits of a router, (N, new experts)."""
        return (new.logits - old.logits[:, self.expert_sources]).abs()

    def router_tolerance(self, block: int, old: Routing, bounds: RoundingBounds | None) -> float:
        """How far the logits of a block's router may be off."""
        usual = self.relative_tolerance * max(1.0, float(old.logits.abs().max()))
        return max(usual, bounds.routers[block] if bounds else 0.0)

    def near_tie_margin(self, block: int, old: Routing, bounds: RoundingBounds | None) -> float:
        """Below which distance of logits rounding may decide what a block's router chooses."""
        usual = NEAR_TIE_MARGIN * max(1.0, float(old.logits.abs().max()))
        return max(usual, 2 * bounds.routers[block] if bounds else 0.0)

    def matched_routers(self) -> Iterator[tuple[int, Routing, Routing]]:
        """(new block, old routing, new routing) of every router that both models have."""
        if not self.old_trace.routings or not self.new_trace.routings:
            return
        for block, origin in enumerate(self.growth_map.blocks):
            if origin.kind == "kept":
                yield block, self.old_trace.routings[origin.source], self.new_trace.routings[block]

    @cached_property
    def routing_changes(self) -> RoutingChanges:
        """Compare every choice of experts, following near ties through time and depth."""
        return self._compare_routing(self.rounding_bounds)

    def _compare_routing(self, bounds: RoundingBounds | None) -> RoutingChanges:
        pairs = {block: (old, new) for block, old, new in self.matched_routers()}
        reached = torch.zeros(self.probe.shape, dtype=torch.bool, device=self.probe.device)
        masks, near_ties, hard = [], 0, 0
        for block in range(len(self.growth_map.blocks)):
            if block in pairs:
                old, new = pairs[block]
                changed = self._routing_differs(old, new).view_as(reached) & ~reached
                margin = old.selection_margin().view_as(reached)
                near = changed & (margin < self.near_tie_margin(block, old, bounds))
                tied = near & (margin == 0)
                if old.num_experts != new.num_experts and bool(tied.any()):
                    # Copies have equal scores: a tie parts them, which loses nothing if the experts are alike.
                    moved = ~(self.drift(block).amax(dim=-1) <= self.drift_tolerance(block, bounds))
                    changed &= ~tied | moved
                    near &= ~tied
                near_ties += int(near.sum())
                hard += int((changed & ~near).sum())
                # Attention carries a difference to all later positions of the sequence.
                reached = reached | near.cummax(dim=1).values
            masks.append(reached)
        return RoutingChanges(masks, near_ties, hard)

    @cached_property
    def expert_sources(self) -> Tensor:
        """(new experts,), the old expert that each copies, where both models have some."""
        experts = self.growth_map.axes.get("experts")
        count = self.new_model.config.num_experts
        source = torch.arange(count) if experts is None else experts.source
        return source.to(self.probe.device)

    def _routing_differs(self, old: Routing, new: Routing) -> Tensor:
        """(N,), whether a token uses copies of other experts than it used."""
        copies_chosen, rest = divmod(new.selected_experts.shape[-1], old.selected_experts.shape[-1])
        if rest:
            return torch.ones_like(old.selected_experts[:, 0], dtype=torch.bool)
        used = self.expert_sources[new.selected_experts].sort().values
        return (old.selected_experts.repeat(1, copies_chosen).sort().values != used).any(dim=-1)

    @cached_property
    def logit_differences(self) -> Tensor:
        """|new − old| logits at the positions that no near tie reaches, zero elsewhere, (B, T, V)."""
        reached = self.routing_changes.affected_positions[-1].unsqueeze(-1)
        return (self.new_trace.logits - self.old_trace.logits).abs().masked_fill(reached, 0.0)

    @cached_property
    def max_logit_difference(self) -> float:
        """The largest of `logit_differences`; infinite if a logit, also a router's, or a stream is not finite."""
        return float(self.logit_differences.max()) if self.is_finite else float("inf")


def half_precision_tolerance(dtype: torch.dtype) -> float:
    """Relative difference of logits that weights of half precision excuse; 0 for the others."""
    eps = torch.finfo(dtype).eps
    return 4 * eps if eps > 1e-6 else 0.0


def to_at_least_fp32(model: TransformerLM) -> TransformerLM:
    """The model, or a copy in fp32 of one in half precision."""
    some = next(model.parameters())
    if some.dtype.itemsize >= 4 or is_sharded(some):
        return model
    return copy.deepcopy(model).float()


def find_nonfinite_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or infinity; where sharded, all processes must ask."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if all_reduce_sum((~get_local_tensor(tensor).isfinite()).sum(), tensor)
    ]


def _largest(difference: Tensor, excused: Tensor) -> float:
    return float(difference.abs().masked_fill(excused, 0.0).max())


def infer_growth_from_configs(old: ModelConfig, new: ModelConfig) -> GrowthMap:
    """The growth between two configs: upcycled or experts multiplied, widened, deepened (appended), as needed.

    Raises:
        ValueError: If the operators cannot make one of the other.
    """
    return _infer_growth(old, new, {}, {})


def infer_growth_from_models(
    old: TransformerLM, new: TransformerLM, growth_dtype: torch.dtype | None = None
) -> GrowthMap:
    """The growth between two models: that between their configs, with the settings that explain the weights.

    Args:
        old: Before.
        new: After.
        stored_as: As for `Comparison`.

    Returns:
        As `infer_growth`, with its settings if none explain all weights.

    Raises:
        ValueError: If the operators cannot make one of the other.
    """
    usual = infer_growth_from_configs(old.config, new.config)
    is_wider = any(axis != "experts" for axis in usual.axes)
    is_deeper = new.config.n_layers != old.config.n_layers
    for widen, deepen in product(
        WIDEN_VARIANTS if is_wider else WIDEN_VARIANTS[:1],
        DEEPEN_VARIANTS if is_deeper else DEEPEN_VARIANTS[:1],
    ):
        growth_map = _infer_growth(old.config, new.config, widen, deepen)
        found = find_weight_faults(
            old.state_dict(), new.state_dict(), growth_map, growth_dtype, first_only=True
        )
        if not found.faults:
            return growth_map
    return usual


WIDEN_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"new_channels": "fresh"}, {"split": "1:2"})
"""How channels may have been made; noise may have been added or not, that is the same check."""
DEEPEN_VARIANTS: tuple[dict[str, Any], ...] = tuple(
    {"placement": placement, "init": init}
    for init in ("identity", "fresh", "copy")
    for placement in ("append", "stack", "interleave")
)
MAX_NOISE_STD = 10.0
"""Of random numbers whose deviation is not known: what the operators allow at most; noise is capped below."""


def _infer_growth(
    old: ModelConfig, new: ModelConfig, widen: dict[str, Any], deepen: dict[str, Any]
) -> GrowthMap:
    """As `infer_growth`, with some settings of `Widen` and `Deepen`."""
    operators: list[Operator] = []
    if new.is_moe and not old.is_moe:
        finer = max(1, old.d_ff // new.d_ff)
        experts, top_k = new.num_experts // finer, new.top_k // finer
        operators.append(Upcycle(experts, top_k, router_std=MAX_NOISE_STD, granularity=finer))
    elif old.is_moe and new.num_experts >= 2 * old.num_experts:
        factor = new.num_experts // old.num_experts
        more = None if new.top_k == old.top_k * factor else new.top_k
        noise_std = 0.0 if old.router_tie_breaking else MAX_NOISE_STD
        operators.append(MultiplyExperts(factor, more, noise_std, MAX_NOISE_STD))
    d_ff = old.d_ff
    if operators:
        d_ff = build_growth_map(old, operators).new_config.d_ff
    if (new.d_model, new.n_heads, new.d_ff) != (old.d_model, old.n_heads, d_ff):
        noise = {} if widen.get("new_channels") == "fresh" else {"noise_std": MAX_NOISE_STD}
        sizes = {"d_model": new.d_model, "n_heads": new.n_heads, "d_ff": new.d_ff}
        operators.append(Widen(**(sizes | noise | widen)))
    if new.n_layers != old.n_layers:
        operators.append(Deepen(extra_layers=new.n_layers - old.n_layers, **deepen))
    growth_map = build_growth_map(old, operators)
    # A changed head size is for the RoPE check to find.
    if replace(growth_map.new_config, head_dim=new.head_dim).axis_sizes() != new.axis_sizes():
        raise ValueError(f"no known growth makes a model of {new} from one of {old}")
    return growth_map
