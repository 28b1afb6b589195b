"""How long a phase takes on a machine whose speed is known."""

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
    """Bytes that are asked of the system."""

    new_bytes: int
    """It has to find them first."""
    reused_bytes: int
    """The run has had them before, and given back."""

    @classmethod
    def from_peak(cls, num_bytes: int, peak: int, previous_peak: int) -> Allocation:
        """So many, on the way to a peak, by a run that has had some memory before."""
        fresh = min(num_bytes, max(0, peak - previous_peak))
        return cls(fresh, num_bytes - fresh)

    def estimate_seconds(self, calibration: Calibration) -> float:
        """Until they are there."""
        return (
            self.new_bytes / calibration.fresh_bytes + self.reused_bytes / calibration.again_bytes
        )


@dataclass(frozen=True)
class PhaseWorkload:
    """What one device does in a phase, in units that a `Calibration` and `Links` have rates of."""

    pass_workload: PassWorkload
    """One pass; `passes` of them are a step."""
    passes_per_step: int
    num_steps: int
    gradient_bytes: int
    adamw_equivalent_parameters: float
    """Parameters that AdamW would step in the time that the optimizer takes for its own."""
    validation_passes: float
    """In units of a training pass; a forward pass is a third of one."""
    training_allocation: Allocation
    """By the first steps."""
    growth_allocation: Allocation
    """By the growth and its checks."""
    check_flops: int
    """Of the checks at the boundary, in fp32."""
    symmetry_check_bytes: int
    """Read by the check that copies differ."""
    activation_checkpointing: bool
    """Whether the backward pass computes every block again."""
    communication: StepCommunication
    """With other devices, in a step."""
    interconnect: Interconnect

    def estimate_seconds(self, calibration: Calibration) -> dict[str, float]:
        """Of a step, all steps, all validations, and of growing.

        Of a step also how long messages take by themselves, and how much of that the device waits for.
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
"""Times that torchao's 8-bit step takes as long as AdamW's fused one on a CPU (`scripts/bench_eight_bit.py`)."""
SYMMETRY_CHECK_MEMORY_PASSES = 12
"""Times that the symmetry check reads or writes every weight and gradient."""


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
    """The work of a phase.

    Args:
        config: The run.
        plan: Made from it.
        phase: One of its phases.
        before: The one before it.
        work: Of one of its passes.
        memory: What it takes.
        machine: Where it runs.
        layout: How models lie on its devices.
        had: The most memory that the run has had before.
    """
    trainer = config.trainer
    is_slow = config.optimizer.name == adamw_8bit.OPTIMIZER_NAME and machine.accelerator == "cpu"
    often = phase.num_steps // trainer.validate_every if trainer.validate_every else 0
    validation = trainer.validation_sequences / phase.settings.batch_size / 3  # shared out, too
    if max(memory.growth_peak, memory.weights + memory.optimizer) > previous_peak:
        previous_peak = (
            0  # other memory is given first: 12 GB after 4 came no faster than the first 4 had
        )
    growth_memory = check_flops = twin_bytes = 0
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
            twin_bytes = SYMMETRY_CHECK_MEMORY_PASSES * (memory.weights + memory.gradients)
    entries = memory.weights / layout.bytes_per_element
    return PhaseWorkload(
        pass_workload=pass_workload,
        passes_per_step=phase.settings.accumulate,
        num_steps=phase.num_steps,
        gradient_bytes=memory.gradients,
        # The rate is one of fp32.
        adamw_equivalent_parameters=entries
        * layout.bytes_per_element
        / 4
        * (CPU_8BIT_ADAMW_SLOWDOWN if is_slow else 1),
        validation_passes=(2 + often) * validation,
        training_allocation=Allocation.from_peak(
            memory.training_peak, memory.training_peak, previous_peak
        ),
        growth_allocation=Allocation.from_peak(growth_memory, memory.growth_peak, previous_peak),
        check_flops=check_flops,
        symmetry_check_bytes=twin_bytes,
        activation_checkpointing=trainer.activation_checkpointing,
        communication=plan_communication(
            layout,
            phase,
            tokens_per_pass=local_batch_size(config, phase) * plan.sequence_length,
            activation_checkpointing=trainer.activation_checkpointing,
        ),
        interconnect=build_interconnect(config.cluster, machine.accelerator),
    )
