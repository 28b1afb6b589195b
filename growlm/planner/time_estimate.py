"""Estimate the time of a phase on a machine of known speed."""

from __future__ import annotations

from dataclasses import dataclass

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.model.model_size import training_flops_per_token
from growlm.optim import adamw_8bit
from growlm.planner.calibration import CLIP_MEMORY_PASSES, Calibration
from growlm.planner.communication_cost import Interconnect, StepCommunication, plan_communication
from growlm.planner.memory_estimate import (
    MemoryEstimate,
    has_duplicate_channels,
    local_batch_size,
    num_probe_tokens,
    probe_size_in_passes,
)
from growlm.planner.meta_trace import PassWorkload
from growlm.planner.planned_devices import build_interconnect
from growlm.planner.sharding_layout import ShardingLayout
from growlm.runtime.hardware import Machine


@dataclass(frozen=True)
class Allocation:
    """Bytes of memory that a process requests, new and reused."""

    new_bytes: int
    """Bytes that the system has to find first."""
    reused_bytes: int
    """Bytes that the run has held before and released."""

    @classmethod
    def from_peak(cls, num_bytes: int, peak: int, previous_peak: int) -> Allocation:
        """Split `num_bytes` of memory below `peak` into new and reused bytes, given the run's previous peak."""
        fresh = min(num_bytes, max(0, peak - previous_peak))
        return cls(fresh, num_bytes - fresh)

    def estimate_seconds(self, calibration: Calibration) -> float:
        """Return the seconds until the memory is available."""
        return (
            self.new_bytes / calibration.fresh_bytes + self.reused_bytes / calibration.again_bytes
        )


@dataclass(frozen=True)
class PhaseWorkload:
    """Work of one device in a phase, in the units of the rates of `Calibration` and `Interconnect`."""

    pass_workload: PassWorkload
    """Work of one forward and backward pass."""
    passes_per_step: int
    num_steps: int
    gradient_bytes: int
    adamw_equivalent_parameters: float
    """Parameters that AdamW could update in the time that this optimizer takes for the model."""
    validation_passes: float
    """Validation, in training passes; a forward pass is a third of one."""
    training_allocation: Allocation
    """Memory requested by the first steps."""
    growth_allocation: Allocation
    """Memory requested by the growth and its checks."""
    check_flops: int
    """FLOPs of the boundary checks, in fp32."""
    symmetry_check_bytes: int
    """Bytes moved by the symmetry check, which verifies that duplicate channels diverge."""
    activation_checkpointing: bool
    """Whether the backward pass recomputes every block."""
    communication: StepCommunication
    """Communication with other devices in a step."""
    interconnect: Interconnect

    def estimate_seconds(self, calibration: Calibration) -> dict[str, float]:
        """Return the seconds of a step, of all steps, of all validations and of the growth.

        `communication` is a step's communication by itself, `waiting` the part of it that does not overlap with
        computation.
        """
        one_pass = calibration.pass_seconds(self.pass_workload)
        update = self.gradient_bytes * CLIP_MEMORY_PASSES / calibration.other_bytes
        forward = one_pass / (4 if self.activation_checkpointing else 3)
        waiting = self.communication.exposed_seconds(
            self.interconnect, self.passes_per_step, forward, one_pass - forward
        )
        step = (
            self.passes_per_step * one_pass
            + update
            + self.adamw_equivalent_parameters / calibration.adamw_entries
            + waiting
        )
        return {
            "step": step,
            "communication": self.communication.total_seconds(
                self.interconnect, self.passes_per_step
            ),
            "waiting": waiting,
            "training": step * self.num_steps
            + self.training_allocation.estimate_seconds(calibration),
            "validation": one_pass * self.validation_passes,
            "growth": self.growth_allocation.estimate_seconds(calibration)
            + self.check_flops / calibration.single_flops
            + self.symmetry_check_bytes / calibration.other_bytes,
        }


CPU_8BIT_ADAMW_SLOWDOWN = 50
"""Time of torchao's 8-bit step over that of fused AdamW, on a CPU (`scripts/bench_eight_bit.py`)."""
SYMMETRY_CHECK_MEMORY_PASSES = 12
"""How often the symmetry check reads or writes every weight and gradient."""


def estimate_phase_workload(
    config: RunConfig,
    plan: Plan,
    phase: PlannedPhase,
    previous: PlannedPhase | None,
    pass_workload: PassWorkload,
    memory: MemoryEstimate,
    machine: Machine,
    layout: ShardingLayout,
    previous_peak: int,
) -> PhaseWorkload:
    """Estimate the work of a phase.

    Args:
        config: Config of the run.
        plan: Plan made from the config.
        phase: Phase of the plan.
        previous: Phase before it; None for the first.
        pass_workload: Work of one of its passes.
        memory: Memory estimate of the phase.
        machine: Machine that each device is.
        layout: Sharding of the models over the devices.
        previous_peak: Peak memory of the run before this phase, in bytes.
    """
    trainer = config.trainer
    is_slow = config.optimizer.name == adamw_8bit.OPTIMIZER_NAME and machine.accelerator == "cpu"
    num_extra = phase.num_steps // trainer.validate_every if trainer.validate_every else 0
    # Validation is split over the devices, too.
    num_sets = 1 + len(config.data.evaluation_sets)
    validation = num_sets * trainer.validation_sequences / phase.settings.batch_size / 3
    if max(memory.growth_peak, memory.weights + memory.optimizer) > previous_peak:
        # The system hands out other memory first: 12 GB after 4 GB came no faster than the first 4 GB.
        previous_peak = 0
    growth_memory = check_flops = symmetry_check_bytes = 0
    if previous is not None:
        forward = [
            training_flops_per_token(p.model_config, plan.sequence_length) // 3
            for p in (previous, phase)
        ]
        tokens = num_probe_tokens(config)
        check_flops = tokens * sum(forward)
        growth_memory = memory.weights + memory.optimizer
        if has_duplicate_channels(phase, previous):
            check_flops += 3 * tokens * forward[1]
            share = probe_size_in_passes(config, phase)
            growth_memory += memory.gradients + round(4 * share * memory.activations)
            symmetry_check_bytes = SYMMETRY_CHECK_MEMORY_PASSES * (
                memory.weights + memory.gradients
            )
    entries = memory.weights / layout.bytes_per_element
    return PhaseWorkload(
        pass_workload=pass_workload,
        passes_per_step=phase.settings.accumulate,
        num_steps=phase.num_steps,
        gradient_bytes=memory.gradients,
        # The calibrated rate is that of fp32.
        adamw_equivalent_parameters=entries
        * layout.bytes_per_element
        / 4
        * (CPU_8BIT_ADAMW_SLOWDOWN if is_slow else 1),
        validation_passes=(2 + num_extra) * validation,
        training_allocation=Allocation.from_peak(
            memory.training_peak, memory.training_peak, previous_peak
        ),
        growth_allocation=Allocation.from_peak(growth_memory, memory.growth_peak, previous_peak),
        check_flops=check_flops,
        symmetry_check_bytes=symmetry_check_bytes,
        activation_checkpointing=trainer.activation_checkpointing,
        communication=plan_communication(
            layout,
            phase,
            tokens_per_pass=local_batch_size(config, phase) * plan.sequence_length,
            activation_checkpointing=trainer.activation_checkpointing,
        ),
        interconnect=build_interconnect(config.cluster, machine.accelerator),
    )
