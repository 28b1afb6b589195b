"""Collect router statistics over the steps of a phase and watch for router collapse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growlm.distributed.dtensors import (
    all_reduce_sum,
    get_full_tensor,
    get_local_rows,
    get_local_tensor,
)
from growlm.model.layers.routing import compute_router_health
from growlm.training.phase_module import PhaseStage, StepMetrics
from growlm.verification.check_report import CheckReport
from growlm.verification.router_collapse import (
    RouterCollapseDetector,
    RouterSnapshot,
    compute_expert_similarity,
    get_router_parameters,
)

EARLY_CHECK_STEPS = (2, 20)
"""Steps at which routers are measured even if no row is logged, since a collapse starts at the beginning."""


class RouterMonitor:
    """Statistics and collapse detection for the mixture-of-experts layers of one phase.

    Args:
        stage: Lightning module of the phase, with its model.
    """

    def __init__(self, stage: PhaseStage) -> None:
        self.stage = stage
        self.watch = RouterCollapseDetector()
        self._routers = get_router_parameters(stage.model)
        self._initial_weights = [
            get_full_tensor(router.detach()).clone() for router in self._routers
        ]
        self._loads: Tensor | None = None
        self._tied: Tensor | None = None
        self._num_passes = 0

    def get_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the resume state: a JSON-serializable record, and tensors by name."""
        tensors = {f"routers.start.{i}": start for i, start in enumerate(self._initial_weights)}
        sums = {"routers.loads": self._loads, "routers.tied": self._tied}
        tensors |= {name: value for name, value in sums.items() if value is not None}
        return {"watch": self.watch.state_dict(), "passes": self._num_passes}, tensors

    def restore_state(self, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        self.watch.load_state_dict(record["watch"])
        self._num_passes = record["passes"]
        device = self._initial_weights[0].device
        self._initial_weights = [
            tensors[f"routers.start.{i}"].to(device) for i, _ in enumerate(self._routers)
        ]
        self._loads, self._tied = (
            tensors[name].to(device) if name in tensors else None
            for name in ("routers.loads", "routers.tied")
        )

    def accumulate(self, metrics: StepMetrics) -> None:
        """Add the metrics of a step, without synchronizing with the device."""
        if metrics.expert_loads is None or metrics.tied_fraction is None:
            return
        self._loads = (
            metrics.expert_loads if self._loads is None else self._loads + metrics.expert_loads
        )
        self._tied = (
            metrics.tied_fraction if self._tied is None else self._tied + metrics.tied_fraction
        )
        self._num_passes += metrics.num_passes

    def measure(self, step: int) -> tuple[dict[str, Any], list[str]]:
        """Return the router measures since the last call, for a history row, and new warnings."""
        measures, state = self._compute(step)
        self._loads = self._tied = None
        self._num_passes = 0
        return measures, self.watch.observe(state)

    def peek(self, step: int) -> dict[str, Any]:
        """Return the same measures, and leave what `measure` will return and check 5 sees as it is."""
        return self._compute(step)[0]

    def _compute(self, step: int) -> tuple[dict[str, Any], RouterSnapshot]:
        assert self._loads is not None
        assert self._tied is not None
        gradient = self.stage.router_gradient_norm
        loads = self._loads / self._num_passes
        health = compute_router_health(loads)
        state = RouterSnapshot(
            step=step,
            gradient_norm=0.0 if gradient is None else float(gradient),
            tied_choices=float(self._tied / self._num_passes),
            dead_experts=health.dead_experts,
            load_entropy=health.load_entropy,
            expert_similarity=compute_expert_similarity(self.stage.model),
            router_distance=self._distance(),
        )
        measures = vars(health) | {
            "tied_choices": state.tied_choices,
            "expert_similarity": state.expert_similarity,
            "router_distance": state.router_distance,
            "router_grad_norm": state.gradient_norm,
            "expert_loads": [[round(load, 4) for load in layer] for layer in loads.tolist()],
        }
        return measures, state

    def build_report(self) -> CheckReport:
        """Return the report of check 5 (router collapse) for the phase."""
        return self.watch.report()

    @torch.no_grad()
    def _distance(self) -> float:
        pairs = [
            (get_local_tensor(now), start[get_local_rows(now)])
            for now, start in zip(self._routers, self._initial_weights, strict=True)
        ]
        moved = torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
        moved = all_reduce_sum(moved, self._routers[0])
        size = torch.stack([start.square().sum() for start in self._initial_weights]).sum()
        return float((moved / size.clamp(min=1e-30)).sqrt())
