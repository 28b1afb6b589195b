"""Run two models on one probe and compare them, aligned by the growth that led from one to the other.

Models run in eval mode, without autocast or TF32: under bf16 even a correct widening of a mixture of experts
moves logits by more than 1, because a rounded router chooses other experts.

What counts as rounding is a share of the largest logit. Where two models differ by more, rounding is
measured: the grown model is run once more with every module's output moved by one unit of its precision.
Large noise amplifies rounding, and then a larger difference does not mean a loss.

Shapes: B sequences, T time, N = B·T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor, is_sharded
from growlm.growth.grow_model import build_growth_map
from growlm.growth.growth_inference import iter_candidate_growths
from growlm.growth.growth_map import GrowthMap
from growlm.growth.model_adapters import with_labels
from growlm.growth.model_protocol import growth_config_of
from growlm.growth.transforms.rounding import InexactTensor
from growlm.model.axes import get_blocks
from growlm.model.config import ModelConfig, field_paths, get_field
from growlm.model.keyed_rng import keyed_generator
from growlm.model.layers.routing import Routing
from growlm.runtime.errors import UserError
from growlm.verification.model_output import compute_logits, first_tensor
from growlm.verification.weights import (
    GrowthDtype,
    WeightFaults,
    coarsest_dtype,
    dtype_of,
    find_weight_faults,
)

Model = TypeVar("Model", bound=nn.Module)

NEAR_TIE_MARGIN = 1e-4
"""The distance of router logits, times the largest of them if that is above 1, below which rounding may
decide which expert is chosen."""
ROUNDING_SAFETY_FACTOR = 8.0
"""How many times as far as measured rounding may move the grown model."""


@contextmanager
def full_precision_eval(model: nn.Module) -> Iterator[None]:
    """Run the `with` block in eval mode, without autocast and TF32."""
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
    """Return the mean next-token cross-entropy inside the probe, (B, T, V) and (B, T) -> scalar."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), probe[:, 1:].flatten())


@dataclass(frozen=True)
class ForwardTrace:
    """The intermediate results of one model on the probe."""

    embeddings: Tensor
    """The residual stream before the first block, (B, T, D)."""
    streams: list[Tensor]
    """The residual stream after each block, (B, T, D)."""
    routings: list[Routing]
    """One routing per mixture-of-experts block."""
    logits: Tensor
    """The logits, (B, T, V)."""
    loss: float

    @staticmethod
    def record(model: nn.Module, probe: Tensor, perturbation: float = 0.0) -> ForwardTrace:
        """Run `model` on `probe` (B, T).

        Args:
            model: Model to run.
            probe: Tokens.
            perturbation: Relative size of a random change, up or down, to every module's output; 0 for none.
        """
        perturbations = _perturb_outputs(model, perturbation) if perturbation else []
        streams: list[Tensor] = []
        embeddings: list[Tensor] = []
        routings: list[Routing] = []
        blocks = get_blocks(model)
        if not blocks:
            reason = "has no repeated blocks to compare; mark their container with label_blocks"
            raise UserError("model", type(model).__name__, reason)

        def keep_input(_m: nn.Module, args: Any, kwargs: Any) -> None:
            embeddings.append(first_tensor(args, kwargs))

        hooks = [
            *perturbations,
            blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True),
        ]
        hooks += [
            block.register_forward_hook(lambda _m, _i, out: streams.append(first_tensor(out)))
            for block in blocks
        ]
        try:
            with full_precision_eval(model), torch.no_grad():
                logits = compute_logits(model, probe, routings)
                loss = float(probe_loss(logits, probe))
        finally:
            for hook in hooks:
                hook.remove()
        if len(embeddings) != 1 or len(streams) != len(blocks):
            reason = (
                f"called its {len(blocks)} blocks {len(streams)} times in one run; the checks need a model that "
                "calls each block once, as a module"
            )
            raise UserError("model", type(model).__name__, reason)
        if routings and len(routings) != len(growth_config_of(model).mixtures):
            expected = len(growth_config_of(model).mixtures)
            reason = f"reported {len(routings)} routings; it has {expected} mixtures of experts"
            raise UserError("model", type(model).__name__, reason)
        return ForwardTrace(embeddings[0], streams, routings, logits, loss)

    @property
    def is_finite(self) -> bool:
        """Whether all streams and logits are finite."""
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
    """The positions where the grown model's routers chose other experts."""

    affected_positions: list[Tensor]
    """Per new block, (B, T): positions of its output that a near tie in this or an earlier block may have
    changed."""
    near_ties: int
    """The number of changed choices with a margin small enough for rounding."""
    hard_changes: int
    """The number of changed choices with a larger margin, or between copies of tied experts that differ: a
    loss."""

    def affected_before(self, block: int) -> Tensor:
        """Return the positions (B, T) that earlier blocks may have changed, as a block's router sees them."""
        return (
            self.affected_positions[block - 1]
            if block
            else torch.zeros_like(self.affected_positions[0])
        )

    @property
    def compared_fraction(self) -> float:
        """The share of positions that no near tie affects."""
        return 1.0 - float(self.affected_positions[-1].float().mean())


@dataclass(frozen=True)
class RoundingBounds:
    """Measured bounds, with a safety factor, on how far rounding may move the grown model."""

    streams: list[float]
    """The bound for the residual stream after each block."""
    routers: dict[int, float]
    """The bound for the router logits, by block."""
    logits: float


class ModelComparison:
    """An old and a grown model on one probe.

    Args:
        old_model: Model before the growth.
        new_model: Model after it.
        probe: Tokens, (B, T); moved to the models' device.
        growth_map: Map from the old model to the new one; inferred if not given (`infer_growth_from_models`).
        tolerance: Relative tolerance: differences up to tolerance · max(1, max |logit|) count as rounding; at
            least 4 times the `eps` of half precision. Where that is exceeded, rounding is measured.
        scale_factor: Expected growth of the width, or None.
        growth_dtype: Precision that the weights were grown in, if they have been converted since; one for all, or
            one for each tensor of the new model.

    Raises:
        ValueError: If no growth leads from one config to the other.
    """

    def __init__(
        self,
        old_model: nn.Module,
        new_model: nn.Module,
        probe: Tensor,
        *,
        growth_map: GrowthMap | None = None,
        tolerance: float = 1e-4,
        scale_factor: float | None = None,
        growth_dtype: GrowthDtype | None = None,
    ) -> None:
        old_model, new_model = with_labels(old_model), with_labels(new_model)
        self._growth_dtypes = {
            name: dtype_of(growth_dtype, name, tensor)
            for name, tensor in new_model.state_dict().items()
        }
        self.growth_dtype = coarsest_dtype(self._growth_dtypes.values())
        self.old_model, self.new_model = to_at_least_fp32(old_model), to_at_least_fp32(new_model)
        self.old_config, self.new_config = growth_config_of(old_model), growth_config_of(new_model)
        self.probe = probe.to(next(new_model.parameters()).device)
        self.growth_map = growth_map or infer_growth_from_models(
            old_model, new_model, self._growth_dtypes
        )
        self.relative_tolerance = max(tolerance, half_precision_tolerance(self.growth_dtype))
        self.scale_factor = scale_factor

    @cached_property
    def old_trace(self) -> ForwardTrace:
        """The old model's results on the probe."""
        return ForwardTrace.record(self.old_model, self.probe)

    @cached_property
    def new_trace(self) -> ForwardTrace:
        """The grown model's results on the probe."""
        return ForwardTrace.record(self.new_model, self.probe)

    @cached_property
    def tolerance(self) -> float:
        """The relative tolerance times max(1, max |logit|), or the measured rounding bound if that is larger."""
        return max(
            self._base_tolerance, self.rounding_bounds.logits if self.rounding_bounds else 0.0
        )

    @property
    def _base_tolerance(self) -> float:
        return self.relative_tolerance * max(1.0, float(self.old_trace.logits.abs().max()))

    @cached_property
    def weight_faults(self) -> WeightFaults:
        """The faults of the grown tensors, according to the growth map."""
        old, new = self.old_model.state_dict(), self.new_model.state_dict()
        return find_weight_faults(old, new, self.growth_map, self._growth_dtypes)

    @cached_property
    def rounded_tensors(self) -> list[InexactTensor]:
        """The tensors that the growth rounded, in half precision."""
        return self.growth_map.inexact_tensors(self._growth_dtypes)

    @property
    def expected_logit_change(self) -> float:
        """The expected change of the logits by that, as a share of their standard deviation."""
        return self.growth_map.expected_logit_change(self._growth_dtypes)

    @property
    def embedding_tolerance(self) -> float:
        """Bound on the difference of the embeddings: they are copies, unless they are scaled by the width."""
        old, new = self.growth_map.old_config, self.growth_map.new_config
        if old.embedding_factor == new.embedding_factor:
            return 0.0
        largest = float(self.old_trace.embeddings.abs().max())
        return 4 * torch.finfo(self.growth_dtype).eps * largest

    @cached_property
    def is_finite(self) -> bool:
        """Whether both models' results are finite."""
        return self.old_trace.is_finite and self.new_trace.is_finite

    @cached_property
    def rounding_bounds(self) -> RoundingBounds | None:
        """The measured rounding; None if the usual tolerance is enough, or if no bound could help."""
        if not self.growth_map.lossless or not self.is_finite or self._is_within_tolerance():
            return None
        perturbed = ForwardTrace.record(
            self.new_model, self.probe, perturbation=torch.finfo(self.growth_dtype).eps
        )
        affected = torch.zeros(self.probe.shape, dtype=torch.bool, device=self.probe.device)
        streams, routers = [], {}
        mixtures = iter(zip(self.new_trace.routings, perturbed.routings, strict=True))
        for block, (plain, other) in enumerate(
            zip(self.new_trace.streams, perturbed.streams, strict=True)
        ):
            if self.new_trace.routings and self.new_config.is_mixture(block):
                one, two = next(mixtures)
                excused = affected.view(-1, 1)
                routers[block] = _largest(one.logits - two.logits, excused) * ROUNDING_SAFETY_FACTOR
                changed = one.selected_experts.sort().values != two.selected_experts.sort().values
                affected = affected | changed.any(dim=-1).view_as(affected).cummax(dim=1).values
            streams.append(_largest(plain - other, affected.unsqueeze(-1)) * ROUNDING_SAFETY_FACTOR)
        logits = (
            _largest(self.new_trace.logits - perturbed.logits, affected.unsqueeze(-1))
            * ROUNDING_SAFETY_FACTOR
        )
        return RoundingBounds(streams, routers, logits)

    def _is_within_tolerance(self) -> bool:
        """Return whether all differences are within the usual tolerances."""
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
        """Return the old residual stream (B, T, D) that the new one should equal after `block`."""
        source = self.growth_map.old_block_at(block)
        return self.old_trace.embeddings if source is None else self.old_trace.streams[source]

    def drift(self, block: int) -> Tensor:
        """Return |new − old| of the residual stream after a block, (B, T, copies)."""
        return self.stream_difference(self.old_stream(block), self.new_trace.streams[block])

    def stream_difference(self, old: Tensor, new: Tensor) -> Tensor:
        """Return |new − old| of a residual stream over the channels that copy one, (B, T, copies)."""
        channels = self.growth_map.axes.get("residual")
        if channels is None:
            return (new - old).abs()
        kept = (~channels.is_filler).nonzero().squeeze(1).to(new.device)
        return (new[..., kept] - old[..., channels.source.to(new.device)[kept]]).abs()

    def drift_tolerance(self, block: int, bounds: RoundingBounds | None) -> float:
        """Return the largest allowed difference of the residual stream after a block."""
        usual = self.relative_tolerance * max(1.0, float(self.old_stream(block).abs().max()))
        return max(usual, bounds.streams[block] if bounds else 0.0)

    def router_difference(self, old: Routing, new: Routing) -> Tensor:
        """Return |new − old| of a router's logits, (N, new experts)."""
        return (new.logits - old.logits[:, self.expert_sources]).abs()

    def router_tolerance(self, block: int, old: Routing, bounds: RoundingBounds | None) -> float:
        """Return the largest allowed difference of the logits of a block's router."""
        usual = self.relative_tolerance * max(1.0, float(old.logits.abs().max()))
        return max(usual, bounds.routers[block] if bounds else 0.0)

    def near_tie_margin(self, block: int, old: Routing, bounds: RoundingBounds | None) -> float:
        """Return the distance of logits below which rounding may decide what a block's router chooses."""
        usual = NEAR_TIE_MARGIN * max(1.0, float(old.logits.abs().max()))
        return max(usual, 2 * bounds.routers[block] if bounds else 0.0)

    def matched_routers(self) -> Iterator[tuple[int, Routing, Routing]]:
        """Yield (new block, old routing, new routing) for every router that both models have."""
        if not self.old_trace.routings or not self.new_trace.routings:
            return
        old = dict(zip(self.old_config.mixtures, self.old_trace.routings, strict=True))
        new = dict(zip(self.new_config.mixtures, self.new_trace.routings, strict=True))
        for block, origin in enumerate(self.growth_map.blocks):
            if origin.kind == "kept" and block in new and origin.source in old:
                yield block, old[origin.source], new[block]

    @cached_property
    def routing_changes(self) -> RoutingChanges:
        """The result of comparing every choice of experts, following near ties through time and depth."""
        return self._compare_routing(self.rounding_bounds)

    def _compare_routing(self, bounds: RoundingBounds | None) -> RoutingChanges:
        pairs = {block: (old, new) for block, old, new in self.matched_routers()}
        affected = torch.zeros(self.probe.shape, dtype=torch.bool, device=self.probe.device)
        masks, near_ties, hard = [], 0, 0
        for block in range(len(self.growth_map.blocks)):
            if block in pairs:
                old, new = pairs[block]
                changed = self._routing_differs(old, new).view_as(affected) & ~affected
                margin = old.selection_margin().view_as(affected)
                near = changed & (margin < self.near_tie_margin(block, old, bounds))
                tied = near & (margin == 0)
                if old.num_experts != new.num_experts and bool(tied.any()):
                    # Copies have equal scores, so a tie may separate them. That loses nothing if they are equal.
                    moved = ~(self.drift(block).amax(dim=-1) <= self.drift_tolerance(block, bounds))
                    changed &= ~tied | moved
                    near &= ~tied
                near_ties += int(near.sum())
                hard += int((changed & ~near).sum())
                # Attention passes a difference on to all later positions of the sequence.
                affected = affected | near.cummax(dim=1).values
            masks.append(affected)
        return RoutingChanges(masks, near_ties, hard)

    @cached_property
    def expert_sources(self) -> Tensor:
        """The old expert that each new expert copies, (new experts,), if both models have experts."""
        experts = self.growth_map.axes.get("experts")
        count = self.new_config.num_experts
        source = torch.arange(count) if experts is None else experts.source
        return source.to(self.probe.device)

    def _routing_differs(self, old: Routing, new: Routing) -> Tensor:
        """Return whether each token uses copies of other experts than before, (N,)."""
        copies_chosen, rest = divmod(new.selected_experts.shape[-1], old.selected_experts.shape[-1])
        if rest:
            return torch.ones_like(old.selected_experts[:, 0], dtype=torch.bool)
        used = self.expert_sources[new.selected_experts].sort().values
        return (old.selected_experts.repeat(1, copies_chosen).sort().values != used).any(dim=-1)

    @cached_property
    def logit_differences(self) -> Tensor:
        """The differences |new − old| of logits, (B, T, V); zero at positions that a near tie affects."""
        affected = self.routing_changes.affected_positions[-1].unsqueeze(-1)
        return (self.new_trace.logits - self.old_trace.logits).abs().masked_fill(affected, 0.0)

    @cached_property
    def max_logit_difference(self) -> float:
        """The largest of `logit_differences`; infinite if a logit, router logit or stream is not finite."""
        return float(self.logit_differences.max()) if self.is_finite else float("inf")


def half_precision_tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference of logits that weights in half precision explain; 0 for other precisions."""
    eps = torch.finfo(dtype).eps
    return 4 * eps if eps > 1e-6 else 0.0


def to_at_least_fp32(model: Model) -> Model:
    """Return the model, or a copy in fp32 if a part of it is in half precision."""
    parameters = list(model.parameters())
    if all(p.dtype.itemsize >= 4 for p in parameters) or is_sharded(parameters[0]):
        return model
    return copy.deepcopy(model).float()


def find_nonfinite_tensors(model: nn.Module) -> list[str]:
    """Return the names of tensors that hold NaN or infinity; if they are sharded, all processes must call it."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if all_reduce_sum((~get_local_tensor(tensor).isfinite()).sum(), tensor)
    ]


def _largest(difference: Tensor, excused: Tensor) -> float:
    return float(difference.abs().masked_fill(excused, 0.0).max())


def infer_growth_from_configs(old: ModelConfig, new: ModelConfig) -> GrowthMap:
    """Return the likeliest growth between two configs, by the registered operators as needed.

    Blocks are taken to be appended.

    Raises:
        ValueError: If the operators cannot turn one into the other.
    """
    return next(_iter_growth_maps(old, new, old))


def infer_growth_from_models(
    old: nn.Module, new: nn.Module, growth_dtype: GrowthDtype | None = None
) -> GrowthMap:
    """Return the growth between two models: the one between their configs whose settings explain the weights.

    Args:
        old: Model before the growth.
        new: Model after it.
        growth_dtype: Precision that the weights were grown in, if they have been converted since; one for all, or
            one for each tensor of the new model.

    Returns:
        The growth map; if no settings explain all weights, that of `infer_growth_from_configs`.

    Raises:
        ValueError: If the operators cannot turn one into the other.
    """
    usual = None
    for growth_map in _iter_growth_maps(growth_config_of(old), growth_config_of(new), old):
        usual = usual or growth_map
        found = find_weight_faults(
            old.state_dict(), new.state_dict(), growth_map, growth_dtype, first_only=True
        )
        if not found.faults:
            return growth_map
    assert usual is not None
    return usual


def _iter_growth_maps(
    old: ModelConfig, new: ModelConfig, model: nn.Module | ModelConfig
) -> Iterator[GrowthMap]:
    """Yield the growth maps that registered operators can turn one config into the other by, the likeliest first.

    Args:
        old: Config before the growth.
        new: Config after it.
        model: Model before the growth, or its config.

    Raises:
        ValueError: If there are none.
    """
    refusals: list[UserError] = []
    found = False
    for operators in iter_candidate_growths(old, new, refusals):
        try:
            growth_map = build_growth_map(model, operators)
        except UserError as error:  # the model does not allow such a growth
            refusals.append(error)
            continue
        found = True
        yield growth_map
    if not found:
        why = f" ({refusals[0]})" if refusals else ""
        one, other = (", ".join(settings) for settings in _differing_settings(old, new))
        raise ValueError(f"no known growth turns a model with {one} into one with {other}{why}")


def _differing_settings(old: ModelConfig, new: ModelConfig) -> tuple[list[str], list[str]]:
    """Return the settings in which two configs differ, as each has them."""
    if type(old) is not type(new) or old == new:
        return [str(old)], [str(new)]
    paths = [path for path in field_paths(old) if get_field(old, path) != get_field(new, path)]
    first, second = ([f"{p}={get_field(config, p)}" for p in paths] for config in (old, new))
    return first, second
