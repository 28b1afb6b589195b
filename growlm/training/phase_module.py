"""One phase as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import OptimizerConfig, ScheduleConfig, TrainerConfig
from growlm.distributed.process_group import World
from growlm.growth.optimizer_state import State
from growlm.inference.scoring import summed_loss
from growlm.model.fsdp import sharded_model
from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.layers.routing import Routing
from growlm.model.transformer import TransformerLM
from growlm.optim.lr_schedule import schedule_factor
from growlm.optim.optimizer_factory import (
    audit_optimizer,
    build_optimizer,
    load_states,
    states_by_name,
)
from growlm.optim.step_scaling import StepScaling, total_norm
from growlm.training.nan_check import (
    MOST_SKIPPED,
    NonFiniteError,
    nonfinite_gradient,
    nonfinite_weight,
)
from growlm.verification.router_lock import router_parameters


@dataclass
class StepFigures:
    """Sums over the forward passes of the present step; read and cleared at its end.

    While the step is under way the losses are of this process's part of the batch, then of the whole batch.
    """

    passes: int
    loss: Tensor
    aux_loss: Tensor
    loads: Tensor | None
    """(layers, experts), shares of assignments; of the whole batch always."""
    tied: Tensor | None
    """Share of the tokens whose experts have equal scores."""

    def __add__(self, other: StepFigures) -> StepFigures:
        """The sums over the passes of both."""
        both = self.loads is not None and other.loads is not None
        return StepFigures(
            self.passes + other.passes,
            self.loss + other.loss,
            self.aux_loss + other.aux_loss,
            self.loads + other.loads if both else None,  # type: ignore[operator]
            self.tied + other.tied if both else None,  # type: ignore[operator]
        )

    def over_all(self, world: World) -> StepFigures:
        """Those of the whole batch, of which every process has had an equal part."""
        if world.size == 1:
            return self
        own = [self.loss, self.aux_loss, *([] if self.tied is None else [self.tied])]
        loss, aux_loss, *tied = world.mean(torch.stack(own)).unbind()
        return StepFigures(self.passes, loss, aux_loss, self.loads, tied[0] if tied else None)


class PhaseStage(LightningModule):
    """Trains the model of one phase.

    There is no model until `GrowthCallback.setup` puts in a grown one or `configure_model` a new one, so two
    models never exist at once unless one grows into the other.

    Args:
        plan: The whole plan, for the schedule.
        phase: This phase.
        optimizer_settings: Of the optimizer.
        schedule: Of the learning rate.
        seed: Of initial weights.
        trainer_settings: How blocks run.
        world: The processes of the run.
        mesh: What the model is divided among (FSDP2); None if each process has all of it.
    """

    model: TransformerLM

    def __init__(
        self,
        plan: Plan,
        phase: PlannedPhase,
        optimizer_settings: OptimizerConfig,
        schedule: ScheduleConfig,
        seed: int,
        trainer_settings: TrainerConfig,
        world: World,
        mesh: DeviceMesh | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.phase = plan, phase
        self.optimizer_settings, self.schedule = optimizer_settings, schedule
        self.seed = seed
        self.trainer_settings, self.world = trainer_settings, world
        self.mesh = mesh
        self.starting_states: dict[str, State] = {}
        self.scaling = StepScaling()
        self.first_step = 0
        self.skipped: str | None = None
        """Why the step just done changed nothing, in words."""
        self._skipped_in_a_row = 0
        self._settled = False
        self._routers: list[nn.Parameter] = []
        self.gradient_norm: Tensor | None = None
        self.router_gradient_norm: Tensor | None = None
        self.figures: StepFigures | None = None

    def configure_model(self) -> None:
        """Draw initial weights, unless a grown model is there."""
        if "model" not in dict(self.named_children()):
            if self.mesh is None:
                self.model = TransformerLM(self.phase.model, self.seed)
            else:
                self.model = sharded_model(self.phase.model, self.seed, self.mesh)
        self.model.recompute_blocks = self.trainer_settings.activation_checkpointing
        self.model.compile_blocks = self.trainer_settings.compile

    def go_on(self, step: int, scaling: StepScaling, states: dict[str, State]) -> None:
        """Begin after `step` steps of the phase, with the optimizer's states as they were then."""
        self.first_step, self.scaling, self.starting_states = step, scaling, states

    def on_fit_start(self) -> None:
        """Look once for what every step asks for."""
        self._routers = router_parameters(self.model)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Language-model loss plus the routers' losses, for tokens (batch, time + 1)."""
        routings: list[Routing] = []
        loss = self.model.loss(batch, routings)
        loads = None
        aux_loss = torch.zeros_like(loss)
        if routings:
            loads = self.world.mean(torch.stack([routing.load() for routing in routings]))
            aux_loss = self._router_loss(routings, loads)
        self._collect(loss, aux_loss, routings, loads)
        return loss + aux_loss

    def validation_loss(self, batches: Iterable[Tensor]) -> float:
        """Mean language-model loss over all processes' batches of tokens (batch, time + 1), in eval mode."""
        self.model.eval()
        total, count = self.world.sum(summed_loss(self.model, batches)).tolist()
        self.model.train()
        return float(total / count)

    def configure_optimizers(self) -> Any:
        """The optimizer, started from what the last phase's state grew to, and audited."""
        optimizer = build_optimizer(
            self.model,
            self.optimizer_settings,
            self.phase.settings.lr,
            self.scaling.lr_factor,
        )
        if not self.first_step:
            self.scaling.start(self.starting_states)
        load_states(self.model, optimizer, self.starting_states)
        audit_optimizer(self.model, optimizer)
        self.starting_states = {}

        def factor(steps_of_this_fit: int) -> float:
            return self.lr_factor(self.first_step + steps_of_this_fit)

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    def lr_factor(self, step: int) -> float:
        """The schedule's, after so many steps of the phase."""
        return schedule_factor(self.schedule, self.plan, self.phase, step)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and drop the gradients at once: Lightning keeps them through the next forward pass.

        Raises:
            NonFiniteError: If loss, weights or gradients are not finite, and the step may not be skipped.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.skipped is None:
            self.scaling.after_update()
            self._balance_by_bias()
        # Not the module's own, which looks through all of it for parameters.
        optimizer.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: `optimizer_step` has dropped them."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by our own setting and keep the norm: Lightning refuses clipping with a fused AdamW."""
        limit = self.optimizer_settings.gradient_clip or float("inf")
        gradients = [p.grad for p in self._routers if p.grad is not None]
        self.router_gradient_norm = total_norm(gradients) if gradients else None
        self.gradient_norm = self.scaling.before_update(self.model, optimizer, limit)
        self.skipped = None
        assert self.figures is not None
        self.figures = self.figures.over_all(self.world)
        if not torch.isfinite(self.gradient_norm + self.figures.loss):
            self._refuse_step()
        else:
            self._skipped_in_a_row = 0

    def _refuse_step(self) -> None:
        """Skip the step, if that is allowed and may help; no gradient, no update."""
        assert self.figures is not None
        weight = nonfinite_weight(self.model)
        loss = float(self.figures.loss / self.figures.passes)
        what = weight or nonfinite_gradient(self.model) or f"the loss is {loss}"
        step = self.first_step + self.trainer.global_step + 1
        self._skipped_in_a_row += 1
        may_skip = self.trainer_settings.on_nonfinite == "skip" and weight is None
        if not may_skip or self._skipped_in_a_row > MOST_SKIPPED:
            raise NonFiniteError(f"phase {self.phase.name}, step {step}: {what}")
        self.skipped = what
        self.scaling.abandon()
        self.zero_grad(set_to_none=True)

    def final_states(self, optimizer: Optimizer) -> dict[str, State]:
        """The optimizer's state by parameter name, as plain moments: no step may follow."""
        states = states_by_name(self.model, optimizer)
        if not self._settled:
            self.scaling.settle(states)
            self._settled = True
        return states

    def take_figures(self) -> StepFigures:
        """The figures of the step just done."""
        figures, self.figures = self.figures, None
        assert figures is not None
        return figures

    def _router_loss(self, routings: list[Routing], loads: Tensor) -> Tensor:
        config = self.phase.model
        pairs = zip(routings, loads, strict=True)
        balance = torch.stack([routing.balance_loss(load) for routing, load in pairs]).mean()
        loss = config.router_balance_weight * balance
        if config.router_z_weight:
            z_loss = torch.stack([routing.z_loss() for routing in routings]).mean()
            loss = loss + config.router_z_weight * z_loss
        return loss

    def _collect(
        self, loss: Tensor, aux_loss: Tensor, routings: list[Routing], loads: Tensor | None
    ) -> None:
        new = StepFigures(1, loss.detach(), aux_loss.detach(), loads, None)
        if routings:
            new.tied = torch.stack([r.tied().to(loss.dtype).mean() for r in routings]).mean()
        self.figures = new if self.figures is None else self.figures + new

    @torch.no_grad()
    def _balance_by_bias(self) -> None:
        """Wang et al. 2024 (arXiv 2408.15664), algorithm 1: b_i += step · sign(mean load − load of i)."""
        step = self.phase.model.router_bias_step
        if not step or self.figures is None or self.figures.loads is None:
            return
        mixtures = [m for m in self.model.modules() if isinstance(m, MixtureOfExperts)]
        for mixture, load in zip(mixtures, self.figures.loads, strict=True):
            assert mixture.selection_bias is not None
            mixture.selection_bias += step * (load.mean() - load).sign().to(mixture.selection_bias)
