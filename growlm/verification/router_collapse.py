"""Check 5, router collapse: routers get gradients and do not choose among ties, and every expert is used.

A router whose rows are equal sends every token to the same experts and learns nothing; one that favors few
experts starves the others. Both happen in training, so the check watches a phase and does not compare two
models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from growlm.distributed.dtensors import get_full_tensor
from growlm.growth.model_adapters import with_labels
from growlm.model.axes import Role, axes_table
from growlm.model.layers.routing import Routing
from growlm.runtime.number_format import format_loss, format_magnitude, format_share
from growlm.verification.check_report import CheckReport, Status
from growlm.verification.comparison import full_precision_eval
from growlm.verification.model_output import compute_logits, explain_no_routings

FIRST_CHECKED_STEP = 2
"""The first step to check: in the step before it, equal experts rightly give their router a gradient of
zero."""
MIN_STEPS_FOR_DEAD_EXPERTS = 100
"""The number of steps after which every expert should be used and experts should have begun to diverge."""
MAX_TIED_FRACTION = 0.5
"""The share of tied choices from which a router counts as locked."""
MIN_LOAD_ENTROPY = 0.5
"""The load entropy (1 is an even load) below which routing counts as collapsed."""


@dataclass(frozen=True)
class RouterSnapshot:
    """Statistics of all routers of a model at one step."""

    step: int
    gradient_norm: float
    """The norm over all routers together."""
    tied_choices: float
    """The share of tokens whose experts were chosen among equal scores."""
    dead_experts: int
    load_entropy: float
    expert_similarity: float
    router_distance: float
    """The distance of the routers from where the phase began, relative to their norm there."""


@torch.no_grad()
def compute_expert_similarity(model: nn.Module) -> float:
    """Return the mean cosine similarity of two experts of a layer, over the matrices that write hidden units.

    Equal experts give 1; a model without experts gives NaN.
    """
    cosines = []
    table = axes_table(model)
    for name, parameter in model.named_parameters():
        label = table[name].label
        is_expert = label.has(Role.INDEX, "experts") and label.has(Role.WRITES)
        if is_expert and label.has(Role.READS, "residual"):
            flat = get_full_tensor(parameter).flatten(1).float()
            gram = flat @ flat.T
            norms = gram.diagonal().clamp(min=1e-30).sqrt()
            cosine = gram / torch.outer(norms, norms)
            count = len(flat)
            cosines.append((cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1)))
    return float(torch.stack(cosines).mean()) if cosines else float("nan")


def get_router_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all routers."""
    table = axes_table(model)
    return [
        parameter for name, parameter in model.named_parameters() if table[name].label.is_router
    ]


def check_router_collapse(model: nn.Module, probe: Tensor) -> CheckReport:
    """Check for routers that choose among equal scores, which can be seen without training.

    Args:
        model: Model with or without routers.
        probe: Tokens, (batch, time).
    """
    model = with_labels(model)
    routings: list[Routing] = []
    with full_precision_eval(model), torch.no_grad():
        compute_logits(model, probe, routings)
    return report_router_collapse(model, routings)


def report_router_collapse(model: nn.Module, routings: Sequence[Routing]) -> CheckReport:
    """Report the router-collapse check for a model that has been run already."""
    if not routings:
        return CheckReport("router_lock", Status.NOT_APPLICABLE, explain_no_routings(model))
    tied = float(torch.stack([r.is_tied().double().mean() for r in routings]).mean())
    similarity = compute_expert_similarity(model)
    figures = {"tied_choices": tied, "expert_similarity": similarity}
    summary = (
        f"{format_share(tied)} of the choices tied, expert similarity {format_loss(similarity)}"
    )
    if not (math.isfinite(similarity) and all(r.logits.isfinite().all() for r in routings)):
        summary += "; experts or router logits are not finite"
        return CheckReport("router_lock", Status.FAILED, summary, figures)
    if tied < MAX_TIED_FRACTION:
        return CheckReport("router_lock", Status.PASSED, summary, figures)
    summary += "; router rows are equal: if experts are equal too, they will never diverge"
    return CheckReport("router_lock", Status.FINDING, summary, figures)


class RouterCollapseDetector:
    """A monitor of one phase that is fed router statistics and reports each problem once."""

    def __init__(self) -> None:
        self.first: RouterSnapshot | None = None
        self.last: RouterSnapshot | None = None
        self._reported: set[str] = set()

    def observe(self, state: RouterSnapshot) -> list[str]:
        """Record a snapshot.

        Returns:
            Warnings that were not given before.
        """
        self.first = self.first or state
        self.last = state
        problems = self._problems(state)
        new = [text for kind, text in problems.items() if kind not in self._reported]
        self._reported |= problems.keys()
        return new

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed and reported, as JSON values."""
        snapshots = [None if s is None else asdict(s) for s in (self.first, self.last)]
        return {"first": snapshots[0], "last": snapshots[1], "said": sorted(self._reported)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.first, self.last = (
            RouterSnapshot(**snapshot) if isinstance(snapshot, dict) else snapshot
            for snapshot in (state["first"], state["last"])
        )
        self._reported = set(state["said"])

    def report(self) -> CheckReport:
        """Return the check for the last snapshot."""
        first, last = self.first, self.last
        if first is None or last is None or last.step < FIRST_CHECKED_STEP:
            summary = "no router was observed for two steps"
            return CheckReport("router_lock", Status.NOT_APPLICABLE, summary)
        figures = {"first": asdict(first), "last": asdict(last)}
        problems = self._problems(last)
        if problems:
            failed = "locked" in problems or "broken" in problems
            status = Status.FAILED if failed else Status.FINDING
            return CheckReport("router_lock", status, "; ".join(problems.values()), figures)
        summary = (
            f"routers moved by {format_magnitude(last.router_distance)}, {last.dead_experts} dead experts, "
            f"load entropy {format_magnitude(last.load_entropy)}, expert similarity "
            f"{format_loss(first.expert_similarity)} → {format_loss(last.expert_similarity)}"
        )
        return CheckReport("router_lock", Status.PASSED, summary, figures)

    def _problems(self, state: RouterSnapshot) -> dict[str, str]:
        if state.step < FIRST_CHECKED_STEP:
            return {}
        problems = {}
        if not (math.isfinite(state.router_distance) and math.isfinite(state.expert_similarity)):
            problems["broken"] = "weights of routers or experts are not finite"
        if state.gradient_norm == 0.0:
            problems["locked"] = (
                "router locked: no gradient reaches the routers, so they always choose the same experts; "
                "likely cause: equal router rows (router_init=zeros); set router_init=normal"
            )
        elif state.tied_choices >= MAX_TIED_FRACTION:
            problems["locked"] = (
                f"router locked: {format_share(state.tied_choices)} of the tokens choose among experts of "
                "equal score, which then learn the same; likely cause: equal router rows (router_init=zeros, "
                "or copies without noise); set router_init=normal, or add noise"
            )
        if state.load_entropy < MIN_LOAD_ENTROPY:
            problems["collapse"] = (
                f"routing collapses onto few experts (load entropy {format_magnitude(state.load_entropy)} of 1); "
                "raise model.routing.balance_weight, or set model.routing.bias_step"
            )
        if state.step >= MIN_STEPS_FOR_DEAD_EXPERTS and state.dead_experts:
            problems["dead"] = (
                f"{state.dead_experts} experts received no token recently; raise model.routing.balance_weight, or "
                "set model.routing.bias_step"
            )
        return problems
