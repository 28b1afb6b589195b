"""How long a phase takes on a machine whose speed is known."""

from __future__ import annotations

from dataclasses import dataclass

from growlm.config.schema import RunConfig
from growlm.model.report import training_flops_per_token
from growlm.training import adamw_8bit
from growlm.training.calibration import Calibration
from growlm.training.dry_run import PassWork
from growlm.training.footprint import BYTES, Footprint, has_twins, probe_share
from growlm.training.hardware import Machine
from growlm.training.plan import Plan, PlannedPhase


@dataclass(frozen=True)
class PhaseWork:
    """What a phase does, in units that a `Calibration` has rates of."""

    step: PassWork
    """One pass; `passes` of them are a step."""
    passes: int
    steps: int
    parameters: int
    adamw_entries: float
    """Parameters that AdamW would step in the time that the optimizer takes for its own."""
    validation_passes: float
    """In units of a training pass; a forward pass is a third of one."""
    training_memory: int
    """Bytes that the first steps ask the system for."""
    growth_memory: int
    """Bytes that the growth and its checks ask the system for."""
    check_flops: int
    """Of the checks at the boundary, in fp32."""
    twin_bytes: int
    """Read by the check that copies differ."""

    def seconds(self, speed: Calibration) -> dict[str, float]:
        """Of a step, all steps, all validations, and of growing."""
        one_pass = speed.pass_seconds(self.step)
        update = self.parameters * BYTES * CLIP_TRAFFIC / speed.other_bytes
        step = self.passes * one_pass + update + self.adamw_entries / speed.adamw_entries
        return {
            "step": step,
            "training": step * self.steps + self.training_memory / speed.fresh_bytes,
            "validation": one_pass * self.validation_passes,
            "growth": self.growth_memory / speed.fresh_bytes
            + self.check_flops / speed.single_flops
            + self.twin_bytes / speed.other_bytes,
        }


CLIP_TRAFFIC = 3
"""Times that clipping reads or writes every gradient."""
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
    """
    trainer = config.trainer
    is_slow = config.optimizer.name == adamw_8bit.NAME and machine.accelerator == "cpu"
    often = phase.steps // trainer.validate_every if trainer.validate_every else 0
    share = trainer.validation_sequences / phase.settings.batch_size / 3
    growth_memory = check_flops = twin_bytes = 0
    if before is not None:
        forward = [
            training_flops_per_token(p.model, plan.sequence_length) // 3 for p in (before, phase)
        ]
        passes = probe_share(config, phase)
        tokens = round(passes * phase.settings.batch_size * plan.sequence_length)
        check_flops = tokens * sum(forward)
        growth_memory = memory.weights + memory.optimizer
        if has_twins(phase, before):
            check_flops += 3 * tokens * forward[1]
            growth_memory += memory.gradients + round(4 * passes * memory.activations)
            twin_bytes = TWIN_TRAFFIC * (memory.weights + memory.gradients)
    return PhaseWork(
        step=work,
        passes=phase.settings.accumulate,
        steps=phase.steps,
        parameters=phase.parameters.total,
        adamw_entries=phase.parameters.total * (EIGHT_BIT_TIMES if is_slow else 1),
        validation_passes=(2 + often) * share,
        training_memory=memory.training_peak,
        growth_memory=growth_memory,
        check_flops=check_flops,
        twin_bytes=twin_bytes,
    )
