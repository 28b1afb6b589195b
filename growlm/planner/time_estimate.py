"""How long a phase takes on a machine whose speed is known."""

from __future__ import annotations

from dataclasses import dataclass

from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.model.model_size import training_flops_per_token
from growlm.optim import adamw_8bit
from growlm.planner.calibration import CLIP_TRAFFIC, Calibration
from growlm.planner.communication_cost import Links, Traffic, traffic
from growlm.planner.memory_estimate import (
    Footprint,
    has_twins,
    local_batch,
    probe_share,
    probe_tokens,
)
from growlm.planner.meta_trace import PassWork
from growlm.planner.planned_devices import links_of
from growlm.planner.sharding_layout import Layout
from growlm.runtime.hardware import Machine


@dataclass(frozen=True)
class Asked:
    """Bytes that are asked of the system."""

    fresh: int
    """It has to find them first."""
    again: int
    """The run has had them before, and given back."""

    @classmethod
    def of(cls, size: int, peak: int, had: int) -> Asked:
        """So many, on the way to a peak, by a run that has had some memory before."""
        fresh = min(size, max(0, peak - had))
        return cls(fresh, size - fresh)

    def seconds(self, speed: Calibration) -> float:
        """Until they are there."""
        return self.fresh / speed.fresh_bytes + self.again / speed.again_bytes


@dataclass(frozen=True)
class PhaseWork:
    """What one device does in a phase, in units that a `Calibration` and `Links` have rates of."""

    step: PassWork
    """One pass; `passes` of them are a step."""
    passes: int
    steps: int
    gradient_bytes: int
    adamw_entries: float
    """Parameters that AdamW would step in the time that the optimizer takes for its own."""
    validation_passes: float
    """In units of a training pass; a forward pass is a third of one."""
    training_memory: Asked
    """By the first steps."""
    growth_memory: Asked
    """By the growth and its checks."""
    check_flops: int
    """Of the checks at the boundary, in fp32."""
    twin_bytes: int
    """Read by the check that copies differ."""
    recomputed: bool
    """Whether the backward pass computes every block again."""
    traffic: Traffic
    """With other devices, in a step."""
    links: Links

    def seconds(self, speed: Calibration) -> dict[str, float]:
        """Of a step, all steps, all validations, and of growing.

        Of a step also how long messages take by themselves, and how much of that the device waits for.
        """
        one_pass = speed.pass_seconds(self.step)
        update = self.gradient_bytes * CLIP_TRAFFIC / speed.other_bytes
        forward = one_pass / (4 if self.recomputed else 3)
        waiting = self.traffic.waiting(self.links, self.passes, forward, one_pass - forward)
        step = self.passes * one_pass + update + self.adamw_entries / speed.adamw_entries + waiting
        return {
            "step": step,
            "communication": self.traffic.seconds(self.links, self.passes),
            "waiting": waiting,
            "training": step * self.steps + self.training_memory.seconds(speed),
            "validation": one_pass * self.validation_passes,
            "growth": self.growth_memory.seconds(speed)
            + self.check_flops / speed.single_flops
            + self.twin_bytes / speed.other_bytes,
        }


EIGHT_BIT_TIMES = 50
"""Times that torchao's 8-bit step takes as long as AdamW's fused one on a CPU (`scripts/bench_eight_bit.py`)."""
TWIN_TRAFFIC = 12
"""Times that the symmetry check reads or writes every weight and gradient."""


def phase_work(
    config: RunConfig,
    plan: Plan,
    phase: PlannedPhase,
    before: PlannedPhase | None,
    work: PassWork,
    memory: Footprint,
    machine: Machine,
    layout: Layout,
    had: int,
) -> PhaseWork:
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
    is_slow = config.optimizer.name == adamw_8bit.NAME and machine.accelerator == "cpu"
    often = phase.steps // trainer.validate_every if trainer.validate_every else 0
    validation = trainer.validation_sequences / phase.settings.batch_size / 3  # shared out, too
    if max(memory.growth_peak, memory.weights + memory.optimizer) > had:
        had = 0  # other memory is given first: 12 GB after 4 came no faster than the first 4 had
    growth_memory = check_flops = twin_bytes = 0
    if before is not None:
        forward = [
            training_flops_per_token(p.model, plan.sequence_length) // 3 for p in (before, phase)
        ]
        tokens = probe_tokens(config)
        check_flops = tokens * sum(forward)
        growth_memory = memory.weights + memory.optimizer
        if has_twins(phase, before):
            check_flops += 3 * tokens * forward[1]
            share = probe_share(config, phase)
            growth_memory += memory.gradients + round(4 * share * memory.activations)
            twin_bytes = TWIN_TRAFFIC * (memory.weights + memory.gradients)
    entries = memory.weights / layout.width
    return PhaseWork(
        step=work,
        passes=phase.settings.accumulate,
        steps=phase.steps,
        gradient_bytes=memory.gradients,
        # The rate is one of fp32.
        adamw_entries=entries * layout.width / 4 * (EIGHT_BIT_TIMES if is_slow else 1),
        validation_passes=(2 + often) * validation,
        training_memory=Asked.of(memory.training_peak, memory.training_peak, had),
        growth_memory=Asked.of(growth_memory, memory.growth_peak, had),
        check_flops=check_flops,
        twin_bytes=twin_bytes,
        recomputed=trainer.activation_checkpointing,
        traffic=traffic(
            layout,
            phase,
            tokens=local_batch(config, phase) * plan.sequence_length,
            recomputed=trainer.activation_checkpointing,
        ),
        links=links_of(config.cluster, machine.accelerator),
    )
