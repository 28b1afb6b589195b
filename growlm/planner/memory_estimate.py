"""How much memory and disk a phase takes, known before anything is allocated: arithmetic, and a dry run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.growth.api import LARGE_TENSOR_ENTRIES, build_growth_map
from growlm.growth.eight_bit_moments import scale_key
from growlm.growth.optimizer_state import expected_state_shapes
from growlm.model.config import ModelConfig
from growlm.optim import adamw_8bit
from growlm.optim.optimizer_factory import expected_state_entries
from growlm.planner.meta_trace import PassWorkload, trace_pass
from growlm.planner.sharding_layout import ShardingLayout
from growlm.runtime.hardware import Machine

SINGLE_DEVICE_LAYOUT = ShardingLayout("ddp", 1, bytes_per_element=4, bytes_per_compute_element=4)
"""Everything in fp32: half precision is used in products only."""
LIBRARY_BYTES = {False: 35_000_000, True: 150_000_000}
"""Of a dense model, of a mixture of experts: kernels that oneDNN makes and keeps, its scratch memory, and what the
libraries load on the way. On a CPU; measured (`scripts/bench_memory.py`)."""
COMPILER_BYTES = 100_000_000
"""Of `torch.compile`, once it has made the kernels of `optimizer=adamw_8bit`; measured likewise."""

SHARDING_BYTES = 50_000_000
"""Of torch's sharded tensors, under fsdp; measured on a CPU, by a dense model."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a phase on one device, above what its process holds when the first phase begins."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Held when a forward pass ends, for its backward pass."""
    training_peak: int
    growth_peak: int
    """While the model grows and is checked; 0 in the first phase."""
    disk: int
    """Artefacts that the phase leaves, of all devices together."""
    libraries: int
    """Not tensors."""

    @property
    def peak(self) -> int:
        """The most memory that the phase takes."""
        return max(self.training_peak, self.growth_peak) + self.libraries


def estimate_pass_workload(
    config: RunConfig, plan: Plan, phase: PlannedPhase, machine: Machine
) -> PassWorkload:
    """What one forward and backward pass of a phase takes and does on one device, with its part of the batch.

    Args:
        config: The run.
        plan: Made from it.
        phase: One of its phases.
        machine: Where it runs.
    """
    return trace_pass(
        phase.model_config,
        local_batch_size(config, phase),
        plan.sequence_length,
        machine.uses_half_precision,
        config.trainer.activation_checkpointing,
        machine.weight_dtype is torch.float64,
    )


def local_batch_size(config: RunConfig, phase: PlannedPhase) -> int:
    """Sequences that one device reads in a pass."""
    return phase.settings.batch_size // (config.trainer.devices or 1)


def estimate_memory(
    config: RunConfig,
    phase: PlannedPhase,
    previous: PlannedPhase | None,
    workload: PassWorkload,
    machine: Machine,
    layout: ShardingLayout,
) -> MemoryEstimate:
    """The footprint of a phase.

    Args:
        config: The run.
        phase: One of its phases.
        before: The one before it.
        work: From `pass_work`.
        machine: Where it runs.
        layout: How models lie on its devices.
    """
    weights = layout.weight_bytes(phase)
    optimizer = optimizer_state_bytes(phase.model_config, config.optimizer.name, layout)
    on_cpu = machine.accelerator == "cpu"
    spared = _unheld_weight_copy_bytes(phase, workload, layout)
    activations, forward_peak = workload.activations - spared, workload.forward_peak - spared
    # Beside the gradients of the whole model, which a device may not hold.
    peak = (
        workload.peak - spared - layout.bytes_per_element * phase.parameter_report.total + weights
    )
    # Kept memory is full of the activations' holes, into which gradients do not fit. With accumulation, the
    # gradients of earlier passes are there all the time; so is the memory in which several devices sum them.
    apart = (config.trainer.keep_freed_memory and on_cpu) or phase.settings.accumulate > 1
    apart = apart or layout.num_devices > 1
    passes = max(peak, weights, forward_peak + weights if apart else 0)
    if not phase.num_steps:
        passes = forward_peak
    passes += layout.unsharded_pass_bytes(phase.model_config)
    scaled = weights if phase.settings.optimizer_state == "asymmetric" and previous else 0
    growth_peak = 0
    if previous is not None:
        old = layout.weight_bytes(previous)
        old_states = optimizer_state_bytes(previous.model_config, config.optimizer.name, layout)
        growth_peak = old + old_states + weights
        # One tensor of each at a time, or a small one on every core; or whole blocks, where a check runs one model
        # after the other.
        models = (previous.model_config, phase.model_config)
        largest = [layout.unsharded_sizes(model).largest_tensor_elements for model in models]
        tensors = layout.bytes_per_element * max(
            sum(largest), torch.get_num_threads() * min(LARGE_TENSOR_ENTRIES, *largest)
        )
        checks = max(layout.unsharded_forward_bytes(model) for model in models)
        if has_duplicate_channels(
            phase, previous
        ):  # the symmetry check takes a gradient then, in fp32
            share = probe_size_in_passes(config, phase)
            checks = max(
                checks,
                weights
                + 2 * round(activations * share)
                + layout.unsharded_pass_bytes(phase.model_config, unsharded_blocks=1),
            )
        growth_peak += max(tensors, checks)
    names = (phase.settings.save_as, phase.settings.save_initial_as)
    alone = replace(layout, num_devices=1)
    disk = alone.weight_bytes(phase) * sum(name is not None for name in names)
    if config.checkpoint.save_optimizer and phase.settings.save_as:
        disk += optimizer_state_bytes(phase.model_config, config.optimizer.name, alone)
    return MemoryEstimate(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=activations,
        training_peak=weights + optimizer + max(passes, weights + scaled if phase.num_steps else 0),
        growth_peak=growth_peak,
        disk=disk,
        libraries=library_bytes(config, phase, layout) if on_cpu else 0,
    )


def _unheld_weight_copy_bytes(
    phase: PlannedPhase, workload: PassWorkload, layout: ShardingLayout
) -> int:
    """Weights in half precision that one device keeps for its backward pass, and of several others do."""
    missing = 1 - layout.weight_bytes(phase) / (
        layout.bytes_per_element * phase.parameter_report.total
    )
    return 0 if layout.gathers_weights else round(workload.weight_copies * missing)


def library_bytes(config: RunConfig, phase: PlannedPhase, layout: ShardingLayout) -> int:
    """What is no tensor, on a CPU."""
    compiler = COMPILER_BYTES if config.optimizer.name == adamw_8bit.OPTIMIZER_NAME else 0
    return (
        LIBRARY_BYTES[phase.model_config.is_moe]
        + compiler
        + SHARDING_BYTES * layout.gathers_weights
    )


def num_probe_tokens(config: RunConfig) -> int:
    """Tokens of the boundary's probe."""
    settings = config.verification
    return settings.probe_sequences * min(settings.probe_length, config.sequence_length)


def probe_size_in_passes(config: RunConfig, phase: PlannedPhase) -> float:
    """These in units of a device's training pass."""
    return num_probe_tokens(config) / (local_batch_size(config, phase) * config.sequence_length)


def has_duplicate_channels(phase: PlannedPhase, previous: PlannedPhase) -> bool:
    """Whether the growth to a phase makes copies of channels."""
    axes = build_growth_map(previous.model_config, phase.operators).axes
    return any(len(channels.duplicate_pairs) for channels in axes.values())


def min_memory_bytes(config: RunConfig, phase: PlannedPhase, layout: ShardingLayout) -> int:
    """What the phase takes whatever its batch: weights, gradients, optimizer. No dry run."""
    states = optimizer_state_bytes(phase.model_config, config.optimizer.name, layout)
    return 2 * layout.weight_bytes(phase) + states


def optimizer_state_bytes(
    config: ModelConfig, name: str, layout: ShardingLayout = SINGLE_DEVICE_LAYOUT
) -> int:
    """What an optimizer remembers of a model, on one device."""
    entries, total = expected_state_entries(config, name), 0
    for parameter, held in layout.local_shapes(config).items():
        shapes = expected_state_shapes(entries[parameter], held)
        for entry, shape in shapes.items():
            total += math.prod(shape) * (
                1 if scale_key(entry) in shapes else layout.bytes_per_element
            )
    return total
