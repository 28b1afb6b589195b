"""Estimate the memory and disk space of a phase by arithmetic and a trace on fake tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import OWN, RunConfig
from growlm.growth.eight_bit_moments import scale_key
from growlm.growth.grow_model import LARGE_TENSOR_ENTRIES, build_growth_map
from growlm.growth.optimizer_state import expected_state_shapes
from growlm.model.config import ModelConfig
from growlm.optim import adamw_8bit
from growlm.optim.optimizer_factory import expected_state_entries
from growlm.optim.own_optimizer import probe_optimizer
from growlm.planner.meta_trace import PassWorkload, trace_pass
from growlm.planner.sharding_layout import ShardingLayout
from growlm.runtime.hardware import Machine

SINGLE_DEVICE_LAYOUT = ShardingLayout("ddp", 1, bytes_per_element=4, bytes_per_compute_element=4)
"""Layout of a single device with everything in fp32; half precision is used in matrix products only."""
LIBRARY_BYTES = {False: 35_000_000, True: 150_000_000}
"""Memory of the libraries on a CPU, for a dense model (False) and a mixture of experts (True): oneDNN's kernels
and scratch memory, and code loaded on demand. Measured (`scripts/bench_memory.py`)."""
COMPILER_BYTES = 100_000_000
"""Memory of `torch.compile` once it has built the kernels of `optimizer=adamw_8bit`; measured likewise."""

SHARDING_BYTES = 50_000_000
"""Overhead of torch's sharded tensors under fsdp; measured on a CPU with a dense model."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a phase on one device, in bytes above what its process holds when the first phase begins."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Bytes kept for the backward pass when the forward pass ends."""
    training_peak: int
    growth_peak: int
    """Peak while the model grows and is checked; 0 in the first phase."""
    disk: int
    """Disk space of the checkpoints that the phase writes, for all devices together."""
    libraries: int
    """Memory of libraries, outside tensors."""

    @property
    def peak(self) -> int:
        """The peak memory of the phase."""
        return max(self.training_peak, self.growth_peak) + self.libraries


def estimate_pass_workload(
    config: RunConfig, plan: Plan, phase: PlannedPhase, machine: Machine
) -> PassWorkload:
    """Return the work and memory of one forward and backward pass on one device, with its part of the batch.

    Args:
        config: Config of the run.
        plan: Plan made from the config.
        phase: Phase of the plan.
        machine: Machine that each device is.
    """
    return trace_pass(
        phase.model_config,
        local_batch_size(config, phase),
        plan.sequence_length,
        machine.uses_half_precision,
        config.trainer.activation_checkpointing,
        machine.weight_dtype is torch.float64,
        config.data.document_mask,
    )


def local_batch_size(config: RunConfig, phase: PlannedPhase) -> int:
    """Return the number of sequences that one device reads in a pass."""
    return phase.settings.batch_size // (config.trainer.devices or 1)


def estimate_memory(
    config: RunConfig,
    phase: PlannedPhase,
    previous: PlannedPhase | None,
    workload: PassWorkload,
    machine: Machine,
    layout: ShardingLayout,
) -> MemoryEstimate:
    """Estimate the memory of a phase on one device.

    Args:
        config: Config of the run.
        phase: Phase of the plan.
        previous: Phase before it; None for the first.
        workload: Result of `estimate_pass_workload`.
        machine: Machine that each device is.
        layout: Sharding of the models over the devices.
    """
    weights = layout.weight_bytes(phase)
    optimizer = _state_bytes(config, phase, layout)
    on_cpu = machine.accelerator == "cpu"
    not_held = _unheld_weight_copy_bytes(phase, workload, layout)
    activations, forward_peak = workload.activations - not_held, workload.forward_peak - not_held
    # The traced peak has the gradients of the whole model; a device may hold only a part of them.
    peak = (
        workload.peak - not_held - layout.bytes_per_element * phase.parameter_report.total + weights
    )
    # Gradients do not fit into the gaps that freed activations leave in kept memory. With accumulation, the
    # gradients of earlier passes are held all the time; so are the buffers in which several devices reduce them.
    separate_gradients = (
        config.trainer.keep_freed_memory and on_cpu
    ) or phase.settings.accumulate > 1
    separate_gradients = separate_gradients or layout.num_devices > 1
    pass_peak = max(peak, weights, forward_peak + weights if separate_gradients else 0)
    if not phase.num_steps:
        pass_peak = forward_peak
    pass_peak += layout.unsharded_pass_bytes(phase.model_config)
    scaled = weights if phase.settings.optimizer_state == "asymmetric" and previous else 0
    growth_peak = 0
    if previous is not None:
        old = layout.weight_bytes(previous)
        old_states = _state_bytes(config, previous, layout)
        growth_peak = old + old_states + weights
        # Growth holds one tensor of each model at a time, or a small one per thread; the checks hold unsharded
        # blocks of one model after the other.
        models = (previous.model_config, phase.model_config)
        largest = [layout.unsharded_sizes(model).largest_tensor_elements for model in models]
        tensors = layout.bytes_per_element * max(
            sum(largest), torch.get_num_threads() * min(LARGE_TENSOR_ENTRIES, *largest)
        )
        checks = max(layout.unsharded_forward_bytes(model) for model in models)
        if has_duplicate_channels(phase, previous):
            # The symmetry check computes a gradient, in fp32.
            share = probe_size_in_passes(config, phase)
            checks = max(
                checks,
                weights
                + 2 * round(activations * share)
                + layout.unsharded_pass_bytes(phase.model_config, unsharded_blocks=1),
            )
        growth_peak += max(tensors, checks)
    names = (phase.settings.save_as, phase.settings.save_initial_as)
    unsharded = replace(layout, num_devices=1)
    disk = unsharded.weight_bytes(phase) * sum(name is not None for name in names)
    if config.checkpoint.save_optimizer and phase.settings.save_as:
        disk += _state_bytes(config, phase, unsharded)
    return MemoryEstimate(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=activations,
        training_peak=weights
        + optimizer
        + max(pass_peak, weights + scaled if phase.num_steps else 0),
        growth_peak=growth_peak,
        disk=disk,
        libraries=library_bytes(config, phase, layout) if on_cpu else 0,
    )


def _unheld_weight_copy_bytes(
    phase: PlannedPhase, workload: PassWorkload, layout: ShardingLayout
) -> int:
    """Return the bytes of half-precision weight copies in the trace that are on other devices."""
    missing = 1 - layout.weight_bytes(phase) / (
        layout.bytes_per_element * phase.parameter_report.total
    )
    return 0 if layout.gathers_weights else round(workload.weight_copies * missing)


def library_bytes(config: RunConfig, phase: PlannedPhase, layout: ShardingLayout) -> int:
    """Return the memory of libraries outside tensors, on a CPU."""
    compiler = COMPILER_BYTES if config.optimizer.name == adamw_8bit.OPTIMIZER_NAME else 0
    return (
        LIBRARY_BYTES[phase.model_config.is_moe]
        + compiler
        + SHARDING_BYTES * layout.gathers_weights
    )


def num_probe_tokens(config: RunConfig) -> int:
    """Return the number of tokens of the boundary probe."""
    settings = config.verification
    return settings.probe_sequences * min(settings.probe_length, config.sequence_length)


def probe_size_in_passes(config: RunConfig, phase: PlannedPhase) -> float:
    """Return the tokens of the boundary probe over those of a device's training pass."""
    return num_probe_tokens(config) / (local_batch_size(config, phase) * config.sequence_length)


def has_duplicate_channels(phase: PlannedPhase, previous: PlannedPhase) -> bool:
    """Return whether the growth to a phase duplicates channels."""
    axes = build_growth_map(previous.model_config, phase.operators).axes
    return any(len(channels.duplicate_pairs) for channels in axes.values())


def min_memory_bytes(config: RunConfig, phase: PlannedPhase, layout: ShardingLayout) -> int:
    """Return the memory of weights, gradients and optimizer state: a lower bound that needs no trace."""
    return 2 * layout.weight_bytes(phase) + _state_bytes(config, phase, layout)


def _state_bytes(config: RunConfig, phase: PlannedPhase, layout: ShardingLayout) -> int:
    """Return the bytes of a phase's optimizer state on one device."""
    if config.optimizer.name == OWN:
        share = probe_optimizer(config.optimizer).bytes_per_weight_byte
        return round(share * layout.weight_bytes(phase))
    return optimizer_state_bytes(phase.model_config, config.optimizer.name, layout)


def optimizer_state_bytes(
    config: ModelConfig, name: str, layout: ShardingLayout = SINGLE_DEVICE_LAYOUT
) -> int:
    """Return the bytes of the optimizer state of a model on one device."""
    entries, total = expected_state_entries(config, name), 0
    for parameter, local_shape in layout.local_shapes(config).items():
        shapes = expected_state_shapes(entries[parameter], local_shape)
        for entry, shape in shapes.items():
            total += math.prod(shape) * (
                1 if scale_key(entry) in shapes else layout.bytes_per_element
            )
    return total
