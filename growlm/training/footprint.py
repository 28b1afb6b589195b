"""How much memory and disk a phase takes, known before anything is allocated: arithmetic, and a dry run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from growlm.config.schema import RunConfig
from growlm.growth.engine import table_of
from growlm.growth.grow import plan_growth
from growlm.growth.optimizer_state import state_shapes
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.training.dry_run import PassWork, dry_run
from growlm.training.hardware import Machine
from growlm.training.optimizer import state_entries
from growlm.training.plan import Plan, PlannedPhase

BYTES = 4
"""Of a weight, a gradient and a moment: fp32. Half precision is used in products only."""
LIBRARY_BYTES = {False: 35_000_000, True: 150_000_000}
"""Of a dense model, of a mixture of experts: kernels that oneDNN makes and keeps, its scratch memory, and what the
libraries load on the way. On a CPU; measured (`scripts/bench_memory.py`)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a phase, above what the process holds when the first one begins."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Held when a forward pass ends, for its backward pass."""
    training_peak: int
    growth_peak: int
    """While the model grows and is checked; 0 in the first phase."""
    disk: int
    """Artefacts that the phase leaves."""
    libraries: int
    """Not tensors."""

    @property
    def peak(self) -> int:
        """The most memory that the phase takes."""
        return max(self.training_peak, self.growth_peak) + self.libraries


def pass_work(config: RunConfig, plan: Plan, phase: PlannedPhase, machine: Machine) -> PassWork:
    """What one forward and backward pass of a phase takes and does.

    Args:
        config: The run.
        plan: Made from it.
        phase: One of its phases.
        machine: Where it runs.
    """
    return dry_run(
        phase.model,
        phase.settings.batch_size,
        plan.sequence_length,
        machine.half_precision,
        config.trainer.activation_checkpointing,
    )


def footprint(
    config: RunConfig,
    phase: PlannedPhase,
    before: PlannedPhase | None,
    work: PassWork,
    machine: Machine,
) -> Footprint:
    """The footprint of a phase.

    Args:
        config: The run.
        phase: One of its phases.
        before: The one before it.
        work: From `pass_work`.
        machine: Where it runs.
    """
    weights = BYTES * phase.parameters.total
    optimizer = optimizer_bytes(phase.model, config.optimizer.name)
    on_cpu = machine.accelerator == "cpu"
    # Kept memory is full of the activations' holes, into which gradients do not fit. With accumulation, the
    # gradients of earlier passes are there all the time.
    apart = (config.trainer.keep_freed_memory and on_cpu) or phase.settings.accumulate > 1
    passes = max(work.peak, weights, work.forward_peak + weights if apart else 0)
    if not phase.steps:
        passes = work.forward_peak
    scaled = weights if phase.settings.optimizer_state == "asymmetric" and before else 0
    growth_peak = 0
    if before is not None:
        old = BYTES * before.parameters.total
        old_states = optimizer_bytes(before.model, config.optimizer.name)
        growth_peak = old + old_states + weights
        if has_twins(phase, before):  # the symmetry check takes a gradient then, in fp32
            growth_peak += weights + 2 * round(work.activations * probe_share(config, phase))
    names = (phase.settings.save_as, phase.settings.save_initial_as)
    disk = weights * sum(name is not None for name in names)
    if config.checkpoint.save_optimizer and phase.settings.save_as:
        disk += optimizer
    return Footprint(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=work.activations,
        training_peak=weights + optimizer + max(passes, weights + scaled if phase.steps else 0),
        growth_peak=growth_peak,
        disk=disk,
        libraries=LIBRARY_BYTES[phase.model.is_moe] if on_cpu else 0,
    )


def probe_share(config: RunConfig, phase: PlannedPhase) -> float:
    """Tokens of the boundary's probe, in units of a training pass."""
    probe = config.verification.probe_sequences * min(
        config.verification.probe_length, config.sequence_length
    )
    return probe / (phase.settings.batch_size * config.sequence_length)


def has_twins(phase: PlannedPhase, before: PlannedPhase) -> bool:
    """Whether the growth to a phase makes copies of channels."""
    axes = plan_growth(before.model, phase.operators).axes
    return any(len(channels.twins()) for channels in axes.values())


def least_bytes(config: RunConfig, phase: PlannedPhase) -> int:
    """What the phase takes whatever its batch: weights, gradients, optimizer. No dry run."""
    return 2 * BYTES * phase.parameters.total + optimizer_bytes(phase.model, config.optimizer.name)


def optimizer_bytes(config: ModelConfig, name: str) -> int:
    """What an optimizer remembers of a model."""
    entries, total = state_entries(config, name), 0
    for parameter, row in table_of(config, TransformerLM).items():
        shapes = state_shapes(entries[parameter], row.shape)
        total += BYTES * sum(torch.Size(shape).numel() for shape in shapes.values())
    return total
