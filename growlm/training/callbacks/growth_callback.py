"""Grow the model at the beginning of a phase and check the growth.

This happens in `setup`, which Lightning calls before it configures or wraps anything: every strategy then wraps
the grown model, and no private Lightning API is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import OptimizerConfig, VerificationConfig
from growlm.distributed.dtensors import get_device_mesh, is_sharded
from growlm.distributed.process_group import DistributedContext
from growlm.growth.grow_model import apply_growth, build_growth_map
from growlm.growth.growth_map import GrowthMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.operators.registry import operators_to_dicts
from growlm.growth.optimizer_state import explain_inexactness, grow_optimizer_state
from growlm.growth.step_scaling import AsymmetricScaling, ExactScaling, StepScaling
from growlm.growth.transforms.scale_factors import ScaleFactors
from growlm.model.transformer import TransformerLM
from growlm.reporting.records import BoundaryRecord
from growlm.runtime.errors import RunError
from growlm.runtime.memory import release_memory
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import PhaseState
from growlm.verification.growth_check import detailed_growth_check

CHECKSUM_CHUNK_WORDS = 2**20
"""Words of a tensor that are summed at once, to bound the memory of the int64 copies."""


class GrowthError(RunError):
    """Error raised when a lossless growth changed the model's output, or another boundary check failed."""


class GrowthCallback(Callback):
    """Callback that grows the previous phase's model and optimizer state and checks the growth.

    The order keeps peak memory low: grow the weights; run the checks; free the old weights; grow the moments,
    freeing each old one after its last use.

    Args:
        phase_state: State of the previous phase; it is emptied.
        phase: Phase to grow for.
        probe: Fixed tokens for the checks, (sequences, time).
        settings: Settings of the checks.
        optimizer_settings: Settings of the optimizer.
        seed: Seed of the run.
        report_boundary: Function called with the boundary's record, even if a check failed.
        dist_context: Process group of the run. Every rank grows the model and rank 0 checks it; if the model is
            sharded, all ranks do both together.
    """

    def __init__(
        self,
        phase_state: PhaseState,
        phase: PlannedPhase,
        probe: Tensor,
        settings: VerificationConfig,
        optimizer_settings: OptimizerConfig,
        seed: int,
        report_boundary: Callable[[BoundaryRecord], None],
        dist_context: DistributedContext,
    ) -> None:
        self.phase_state, self.phase = phase_state, phase
        self.probe, self.settings = probe, settings
        self.optimizer_settings = optimizer_settings
        self.seed, self.report_boundary, self.dist_context = seed, report_boundary, dist_context

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Grow the model and the optimizer state, and check the result.

        Raises:
            GrowthError: If a check failed, or the ranks grew different models.
        """
        assert isinstance(pl_module, PhaseStage)
        start = time.perf_counter()
        mode = self.phase.settings.optimizer_state
        assert self.phase_state.model is not None
        old_model: TransformerLM = self.phase_state.model
        growth_map = build_growth_map(old_model.config, self.phase.operators)
        rng = GrowthRng(self.seed, boundary_index=self.phase.index)
        model = apply_growth(old_model, growth_map, rng)
        check = partial(
            detailed_growth_check,
            old_model=old_model,
            new_model=model,
            probe=self.probe,
            device=trainer.strategy.root_device,
            tolerance=self.settings.tolerance,
            growth_map=growth_map,
            require_symmetry_breaking=self.settings.require_symmetry_breaking,
            unequal_moments=mode == "asymmetric" and bool(self.phase_state.optimizer_states),
        )
        report = (
            self.dist_context.run_on_rank0(check) if get_device_mesh(model) is None else check()
        )
        record = BoundaryRecord(
            from_phase=self.phase_state.phase_name,
            to_phase=self.phase.name,
            growth=growth_map.description,
            operators=operators_to_dicts(self.phase.operators),
            report=report,
            noise=summarize_noise(rng),
            optimizer_state=mode,
            inexact_because=explain_inexactness(growth_map) if mode == "exact" else [],
            seconds=time.perf_counter() - start,
        )
        self.report_boundary(record)
        failed = [f"{name}: {check.summary}" for name, check in report.checks.items() if not check]
        if failed:
            raise GrowthError(
                f"growing {record.from_phase} → {record.to_phase} failed its checks. "
                + "; ".join(failed)
            )
        self.phase_state.model = None
        del old_model, check
        release_memory()
        with torch.no_grad():
            pl_module.initial_optimizer_states = grow_optimizer_state(
                growth_map, self.phase_state.optimizer_states, mode
            )
        pl_module.scaling = build_step_scaling(
            self.phase, growth_map, self.phase_state.scale_factors, self.optimizer_settings
        )
        pl_module.model = model
        check_replicas_match(
            self.dist_context, {"": dict(model.state_dict()), **pl_module.initial_optimizer_states}
        )


def check_replicas_match(
    dist_context: DistributedContext, tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Check that all ranks hold the same tensors; sharded tensors are not compared.

    Args:
        dist_context: Process group of the run.
        tensors: Tensors by parameter, then by name.

    Raises:
        GrowthError: On all ranks, naming the first tensor that differs.
    """
    if dist_context.world_size == 1:
        return
    sums = {
        f"{p} {n}".strip(): compute_checksum(t)
        for p, state in tensors.items()
        for n, t in state.items()
        if not is_sharded(t)
    }
    gathered = dist_context.all_gather(sums)
    for rank, other in enumerate(gathered):
        for name in gathered[0].keys() | other.keys():
            if gathered[0].get(name) != other.get(name):
                raise GrowthError(
                    f"after growing, {name} on rank {rank} differs from rank 0; the replicas would diverge"
                )


def compute_checksum(tensor: Tensor) -> int:
    """Return a checksum of the tensor's bits, independent of device and number of threads."""
    words = tensor.detach().contiguous().flatten()
    words = words.view(torch.int32 if words.element_size() % 4 == 0 else torch.uint8)
    weights = torch.arange(1, CHECKSUM_CHUNK_WORDS + 1, device=words.device)
    sums = [
        (chunk.long() * weights[: len(chunk)]).sum() for chunk in words.split(CHECKSUM_CHUNK_WORDS)
    ]
    return hash(tuple(int(chunk_sum) for chunk_sum in sums))


def derive_step_scaling(plan: Plan, index: int, settings: OptimizerConfig) -> StepScaling:
    """Derive the step scaling at the start of a phase from the plan alone."""
    phase = plan.phases[index]
    if index == 0 or phase.settings.optimizer_state not in ("exact", "asymmetric"):
        return StepScaling()
    growth_map = build_growth_map(plan.phases[index - 1].model_config, phase.operators)
    factors = derive_step_scaling(plan, index - 1, settings).carried_factors
    return build_step_scaling(phase, growth_map, factors, settings)


def build_step_scaling(
    phase: PlannedPhase,
    growth_map: GrowthMap,
    previous_factors: Mapping[str, ScaleFactors],
    settings: OptimizerConfig,
) -> StepScaling:
    """Build the step scaling of a phase.

    Args:
        phase: Phase whose steps are scaled.
        growth_map: Growth map of the boundary before the phase.
        previous_factors: Carried scale factors of the previous phase.
        settings: Settings of the optimizer.
    """
    mode = phase.settings.optimizer_state
    if mode == "exact":
        return ExactScaling(growth_map.scale_factors(previous_factors))
    if mode == "asymmetric":
        beta1, beta2 = settings.beta1, settings.beta2
        betas = None if beta1 is None or beta2 is None else (beta1, beta2)
        return AsymmetricScaling(
            growth_map.scale_factors(), settings.rewarm_peak, settings.rewarm_steps, betas
        )
    return StepScaling()


def summarize_noise(rng: GrowthRng) -> dict[str, Any]:
    """Summarize the noise levels that a growth drew; empty if it drew none."""
    if not rng.noise_log.levels:
        return {}
    sigmas = [float(noise["sigma"]) for noise in rng.noise_log.levels.values()]
    return {
        "matrices": len(sigmas),
        "sigma_min": min(sigmas),
        "sigma_max": max(sigmas),
        "capped": sum(bool(noise["capped"]) for noise in rng.noise_log.levels.values()),
    }
