"""Define `PhaseStage`, the LightningModule that trains one phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from growlm.distributed.process_group import DistributedContext
from growlm.growth.step_scaling import StepScaling, compute_gradient_norm
from growlm.inference.scoring import sum_token_losses
from growlm.model.fsdp import create_sharded_model
from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.layers.routing import Routing
from growlm.model.transformer import TransformerLM
from growlm.optim.lr_schedule import compute_lr_factor
from growlm.optim.optimizer_factory import build_optimizer
from growlm.optim.optimizer_states import check_optimizer
from growlm.training.nan_check import (
    MAX_CONSECUTIVE_SKIPS,
    NAN_PAGE,
    NonFiniteError,
    describe_nonfinite_gradient,
    describe_nonfinite_weight,
)
from growlm.verification.router_collapse import get_router_parameters


@dataclass
class StepMetrics:
    """Metrics summed over the forward passes of a step.

    During the step, the losses cover this rank's part of the batch; after `reduce_across_ranks`, all of it.
    """

    num_passes: int
    loss: Tensor
    aux_loss: Tensor
    expert_loads: Tensor | None
    """Shares of assignments, (layers, experts); always of the whole batch."""
    tied_fraction: Tensor | None
    """Fraction of tokens whose experts have equal scores."""

    def __add__(self, other: StepMetrics) -> StepMetrics:
        """Return the sums over the passes of both."""
        both = self.expert_loads is not None and other.expert_loads is not None
        return StepMetrics(
            self.num_passes + other.num_passes,
            self.loss + other.loss,
            self.aux_loss + other.aux_loss,
            self.expert_loads + other.expert_loads if both else None,  # type: ignore[operator]
            self.tied_fraction + other.tied_fraction if both else None,  # type: ignore[operator]
        )

    def reduce_across_ranks(self, dist_context: DistributedContext) -> StepMetrics:
        """Return the metrics of the whole batch, of which every rank has processed an equal part."""
        if dist_context.world_size == 1:
            return self
        local = [
            self.loss,
            self.aux_loss,
            *([] if self.tied_fraction is None else [self.tied_fraction]),
        ]
        loss, aux_loss, *tied = dist_context.all_reduce_mean(torch.stack(local)).unbind()
        return StepMetrics(
            self.num_passes, loss, aux_loss, self.expert_loads, tied[0] if tied else None
        )


class PhaseStage(LightningModule):
    """LightningModule that trains the model of one phase, in a plan or with a Trainer of one's own.

    It has no model until `GrowthCallback.setup` sets a grown one or `configure_model` creates a new one, so two
    models are in memory only while one grows into the other. It logs `train/loss` (of each forward pass, on this
    process) and `val/loss` (of all processes), and `val/NAME/loss` for each further validation loader.
    `Trainer(gradient_clip_val=...)` has no effect: the optimizer's settings say how gradients are clipped.

    Args:
        plan: The whole plan, which the learning rate schedule needs.
        phase: The phase to train.
        optimizer_settings: Settings of the optimizer.
        schedule: Learning rate schedule.
        seed: Seed of the initial weights.
        trainer_settings: Settings for compilation, activation checkpointing and NaN handling.
        dist_context: Process group of the run; None for the one that Lightning initializes.
        mesh: Device mesh that shards the model (FSDP2); None if each process holds all of it.
        log_to_logger: Whether the Trainer's logger gets the losses. A plan's rows have them already.
        log_every: Steps between losses in `trainer.callback_metrics`; logging one takes a fifth of a millisecond.
        document_positions: Function that returns the position of each token of a batch in its document, so that
            attention stays within documents; None for attention to all earlier tokens.
        evaluation_sets: Names of the validation loaders behind the first one; None for those of the Trainer's data
            module, if it is a `PackedDataModule`, or their numbers.
    """

    model: TransformerLM

    def __init__(
        self,
        plan: Plan,
        phase: PlannedPhase,
        optimizer_settings: OptimizerConfig,
        schedule: ScheduleConfig,
        seed: int = 0,
        trainer_settings: TrainerConfig | None = None,
        dist_context: DistributedContext | None = None,
        mesh: DeviceMesh | None = None,
        log_to_logger: bool = True,
        log_every: int = 1,
        document_positions: Callable[[Tensor], Tensor] | None = None,
        evaluation_sets: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.evaluation_sets = evaluation_sets
        self.plan, self.phase = plan, phase
        self.optimizer_settings, self.schedule = optimizer_settings, schedule
        self.seed = seed
        self.trainer_settings = trainer_settings or TrainerConfig()
        self.dist_context = dist_context or DistributedContext()
        self._finds_context = dist_context is None
        self.mesh, self.log_to_logger, self.log_every = mesh, log_to_logger, log_every
        self.document_positions = document_positions
        self.step_scaling = StepScaling()
        """Scaling of gradients and updates after a growth; `GrowthCallback` sets it."""
        self.first_step = 0
        self.skip_reason: str | None = None
        """Why the last step was skipped; None if it was not."""
        self._num_consecutive_skips = 0
        self._router_parameters: list[nn.Parameter] = []
        self.gradient_norm: Tensor | None = None
        self.router_gradient_norm: Tensor | None = None
        self.step_metrics: StepMetrics | None = None
        """Metrics of the current step, or of the last one until the next begins."""
        self._is_step_complete = False
        self.validation_loss = float("nan")
        """Mean language-model loss of the last validation, over the batches of all processes."""
        self.evaluation_losses: dict[str, float] = {}
        """The same for each further validation loader, by name."""
        self._validation_sums: dict[int, Tensor] = {}

    @property
    def flops_per_batch(self) -> int:
        """FLOPs of a training batch on this process, for Lightning's `ThroughputMonitor`."""
        batches = self.phase.settings.accumulate * self.dist_context.world_size
        return self.phase.flops_per_step // batches

    def setup(self, stage: str) -> None:
        """Find the process group that Lightning has initialized, if none was given."""
        if self._finds_context:
            self.dist_context = DistributedContext.current()

    def configure_model(self) -> None:
        """Create a model with random weights, unless a grown or loaded one has been set."""
        if "model" not in dict(self.named_children()):
            if self.mesh is None:
                self.model = TransformerLM(self.phase.model_config, self.seed)
            else:
                self.model = create_sharded_model(self.phase.model_config, self.seed, self.mesh)
        self.model.recompute_blocks = self.trainer_settings.activation_checkpointing
        self.model.compile_blocks = self.trainer_settings.compile

    def on_fit_start(self) -> None:
        """Check the optimizer, and collect the router parameters once, since every step needs them."""
        if self.trainer_settings.compile:
            # The code of the previous phase's model will not run again, and counts towards the compiler's limit.
            torch.compiler.reset()
        check_optimizer(self.model, self.trainer.optimizers[0])
        self._router_parameters = get_router_parameters(self.model)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the language-model loss plus the router losses for tokens (batch, time + 1)."""
        routings: list[Routing] = []
        find_positions = self.document_positions
        loss = (
            self.model.loss(batch, routings)
            if find_positions is None
            else self.model.loss(batch, routings, find_positions(batch))
        )
        loads = None
        aux_loss = torch.zeros_like(loss)
        if routings:
            loads = self.dist_context.all_reduce_mean(
                torch.stack([routing.expert_load() for routing in routings])
            )
            aux_loss = self._router_loss(routings, loads)
        self._accumulate_metrics(loss, aux_loss, routings, loads)
        step = self.trainer.global_step + 1
        if step % self.log_every == 0 or step in (1, self.trainer.max_steps):
            self.log("train/loss", loss.detach(), prog_bar=True, logger=self.log_to_logger)
        return loss + aux_loss

    def on_validation_epoch_start(self) -> None:
        """Begin a validation."""
        self._validation_sums = {}

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the losses of tokens (batch, time + 1) to the sums of their loader."""
        sums = sum_token_losses(self.model, [batch], self.document_positions)
        before = self._validation_sums.get(dataloader_idx)
        self._validation_sums[dataloader_idx] = sums if before is None else before + sums

    def on_validation_epoch_end(self) -> None:
        """Compute and log the mean language-model losses over the batches of all processes."""
        losses = []
        for index in range(len(self._validation_sums)):
            sums = self.dist_context.all_reduce_sum(self._validation_sums[index])
            total, count = sums.tolist()
            losses.append(total / count)
        self.validation_loss, *others = losses
        names = self.evaluation_sets
        if names is None:
            module = getattr(self.trainer, "datamodule", None)
            names = list(getattr(module, "evaluation_sets", ()))
        named = [*names, *(str(index) for index in range(len(names) + 1, len(losses)))]
        self.evaluation_losses = dict(zip(named, others, strict=False))
        for name, loss in {"": self.validation_loss, **self.evaluation_losses}.items():
            self.log(
                f"val/{name}/loss" if name else "val/loss",
                loss,
                prog_bar=not name,
                logger=self.log_to_logger,
                sync_dist=True,
            )

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule."""
        optimizer = build_optimizer(
            self.model,
            self.optimizer_settings,
            self.phase.settings.lr,
            self.step_scaling.lr_factor,
        )

        def factor(steps_of_this_fit: int) -> float:
            return self.lr_factor(self.first_step + steps_of_this_fit)

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    def lr_factor(self, step: int) -> float:
        """Return the schedule's learning rate factor after `step` steps of the phase."""
        return compute_lr_factor(self.schedule, self.plan, self.phase, step)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then free the gradients at once; Lightning would keep them through the next forward pass.

        Raises:
            NonFiniteError: If the loss, a weight or a gradient is not finite and the step may not be skipped.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.skip_reason is None:
            self.step_scaling.after_step()
            self._update_router_bias()
        self._is_step_complete = True
        # Not the module's zero_grad, which searches all submodules for parameters.
        optimizer.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `optimizer_step` has freed the gradients already."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, keep their norm, and skip the step (or raise) if the norm or the loss is not finite."""
        limit = self.optimizer_settings.gradient_clip or float("inf")
        gradients = [p.grad for p in self._router_parameters if p.grad is not None]
        self.router_gradient_norm = compute_gradient_norm(gradients) if gradients else None
        self.gradient_norm = self.step_scaling.before_step(self.model, optimizer, limit)
        self.skip_reason = None
        assert self.step_metrics is not None
        self.step_metrics = self.step_metrics.reduce_across_ranks(self.dist_context)
        if not torch.isfinite(self.gradient_norm + self.step_metrics.loss):
            self._skip_or_raise()
        else:
            self._num_consecutive_skips = 0

    def _skip_or_raise(self) -> None:
        """Skip the step by dropping its gradients, or raise if that is not allowed or cannot help."""
        assert self.step_metrics is not None
        weight = describe_nonfinite_weight(self.model)
        reason = weight or describe_nonfinite_gradient(self.model) or self._describe_overflow()
        step = self.trainer.global_step + 1
        self._num_consecutive_skips += 1
        may_skip = self.trainer_settings.on_nonfinite == "skip" and weight is None
        if not may_skip or self._num_consecutive_skips > MAX_CONSECUTIVE_SKIPS:
            raise NonFiniteError(
                f"phase {self.phase.name}, step {step}: {reason}. What to do: {NAN_PAGE}"
            )
        self.skip_reason = reason
        self.step_scaling.skip_step()
        self.zero_grad(set_to_none=True)

    def _describe_overflow(self) -> str:
        """Return what is not finite if no weight or gradient is: the loss, or the norm of the gradients."""
        assert self.step_metrics is not None
        assert self.gradient_norm is not None
        loss = float(self.step_metrics.loss / self.step_metrics.num_passes)
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        return (
            f"the norm of the gradients is {float(self.gradient_norm)}, too large for its precision: every entry "
            f"of them is finite, and so is the loss, {loss:.6g}"
        )

    def _router_loss(self, routings: list[Routing], loads: Tensor) -> Tensor:
        config = self.phase.model_config
        pairs = zip(routings, loads, strict=True)
        balance = torch.stack([routing.balance_loss(load) for routing, load in pairs]).mean()
        loss = config.routing.balance_weight * balance
        if config.routing.z_weight:
            z_loss = torch.stack([routing.z_loss() for routing in routings]).mean()
            loss = loss + config.routing.z_weight * z_loss
        return loss

    def _accumulate_metrics(
        self, loss: Tensor, aux_loss: Tensor, routings: list[Routing], loads: Tensor | None
    ) -> None:
        new = StepMetrics(1, loss.detach(), aux_loss.detach(), loads, None)
        if routings:
            new.tied_fraction = torch.stack(
                [r.is_tied().to(loss.dtype).mean() for r in routings]
            ).mean()
        begins_step = self.step_metrics is None or self._is_step_complete
        self.step_metrics = new if begins_step else self.step_metrics + new  # type: ignore[operator]
        self._is_step_complete = False

    @torch.no_grad()
    def _update_router_bias(self) -> None:
        """Update the router biases: b_i += step · sign(mean load − load of i).

        Wang et al. 2024 (arXiv 2408.15664), algorithm 1.
        """
        step = self.phase.model_config.routing.bias_step
        if not step or self.step_metrics is None or self.step_metrics.expert_loads is None:
            return
        mixtures = [m for m in self.model.modules() if isinstance(m, MixtureOfExperts)]
        for mixture, load in zip(mixtures, self.step_metrics.expert_loads, strict=True):
            assert mixture.selection_bias is not None
            mixture.selection_bias += step * (load.mean() - load).sign().to(mixture.selection_bias)
