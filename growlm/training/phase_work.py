"""How long a phase takes on a machine whose speed is known."""

from __future__ import annotations

from dataclasses import dataclass

from growlm.config.schema import RunConfig
from growlm.model.report import training_flops_per_token
from growlm.training.calibration import Calibration
from growlm.training.dry_run import PassWork
from growlm.training.footprint import BYTES, Footprint, has_twins
from growlm.training.plan import PlannedPhase


@dataclass(frozen=True)
class PhaseWork:
    """What a phase does, in units that a `Calibration` has rates of."""

    step: PassWork
    """One pass; `passes` of them are a step."""
    passes: int
    steps: int
    parameters: int
    validation_passes: float
    """In units of a training pass; a forward pass is a third of one."""
    fresh_bytes: int
    """Written by the growth: weights, moments, and the gradients of its checks."""
    check_flops: int
    """Of the checks at the boundary, in fp32."""

    def seconds(self, speed: Calibration) -> dict[str, float]:
        """Of a step, all steps, all validations, and of growing."""
        one_pass = speed.pass_seconds(self.step)
        update = self.parameters * BYTES * CLIP_TRAFFIC / speed.other_bytes
        step = self.passes * one_pass + update + self.parameters / speed.adamw_entries
        return {
            "step": step,
            "training": step * self.steps,
            "validation": one_pass * self.validation_passes,
            "growth": self.fresh_bytes / speed.fresh_bytes + self.check_flops / speed.single_flops,
        }


CLIP_TRAFFIC = 3
"""Times that clipping reads or writes every gradient."""


def phase_work(
    config: RunConfig,
    phase: PlannedPhase,
    before: PlannedPhase | None,
    work: PassWork,
    memory: Footprint,
) -> PhaseWork:
    """The work of a phase.

    Args:
        config: The run.
        phase: One of its phases.
        before: The one before it.
        work: Of one of its passes.
        memory: What it takes.
    """
    trainer = config.trainer
    often = phase.steps // trainer.validate_every if trainer.validate_every else 0
    share = trainer.validation_sequences / phase.settings.batch_size / 3
    fresh = check_flops = 0
    if before is not None:
        twins = has_twins(phase, before)
        fresh = memory.weights * (2 if twins else 1) + memory.optimizer
        tokens = config.verification.probe_sequences * config.verification.probe_length
        forward = [
            training_flops_per_token(p.model, config.sequence_length) // 3 for p in (before, phase)
        ]
        check_flops = tokens * (forward[0] + forward[1] * (4 if twins else 1))
    return PhaseWork(
        step=work,
        passes=phase.settings.accumulate,
        steps=phase.steps,
        parameters=phase.parameters.total,
        validation_passes=(2 + often) * share,
        fresh_bytes=fresh,
        check_flops=check_flops,
    )
