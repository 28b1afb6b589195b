"""Compute the plan of a run from its config: every phase's model config, length and position in the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growlm.config.schema import PhaseConfig, RunConfig
from growlm.config.validation import apply_phase_operators
from growlm.growth.grow_model import Operator
from growlm.model.config import ModelConfig
from growlm.model.model_size import ParameterReport, parameter_report, training_flops_per_token
from growlm.runtime.errors import UserError


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with all quantities that its config leaves implicit."""

    name: str
    index: int
    settings: PhaseConfig
    operators: list[Operator]
    model_config: ModelConfig
    """Config of the model after growing."""
    parameter_report: ParameterReport
    num_steps: int
    first_step: int
    """Steps of the run before this phase."""
    first_sample: int
    """Samples of the run before this phase."""
    tokens_per_step: int
    flops_per_step: int

    @property
    def samples_per_step(self) -> int:
        """Sequences per optimizer step."""
        return self.settings.batch_size * self.settings.accumulate


@dataclass(frozen=True)
class Plan:
    """All phases of a run, in order."""

    name: str
    sequence_length: int
    phases: list[PlannedPhase]

    def get_phase(self, name: str) -> PlannedPhase:
        """Return the phase of a name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(phase.num_steps for phase in self.phases)


def make_plan(config: RunConfig, tokenizer_vocab_size: int) -> Plan:
    """Plan a run: apply every growth operator to the model config, and place the phases one after another.

    Args:
        config: Validated config.
        tokenizer_vocab_size: Vocabulary size of the tokenizer.

    Raises:
        UserError: If a model config is invalid or an operator cannot be applied; names the full key.
    """
    models = apply_phase_operators(config, _resolve_initial_model(config, tokenizer_vocab_size))
    phases: list[PlannedPhase] = []
    first_step = first_sample = 0
    for index, (name, settings) in enumerate(config.phases.items()):
        operators, model = models[index]
        samples = settings.batch_size * settings.accumulate
        tokens_per_step = samples * config.sequence_length
        flops_per_step = tokens_per_step * training_flops_per_token(model, config.sequence_length)
        steps = _count_steps(settings, tokens_per_step, flops_per_step)
        phases.append(
            PlannedPhase(
                name=name,
                index=index,
                settings=settings,
                operators=operators,
                model_config=model,
                parameter_report=parameter_report(model),
                num_steps=steps,
                first_step=first_step,
                first_sample=first_sample,
                tokens_per_step=tokens_per_step,
                flops_per_step=flops_per_step,
            )
        )
        first_step += steps
        first_sample += steps * samples
    return Plan(config.name, config.sequence_length, phases)


def _resolve_initial_model(config: RunConfig, tokenizer_vocab_size: int) -> ModelConfig:
    model = config.model.to_model_config(tokenizer_vocab_size)
    if model.vocab_size < tokenizer_vocab_size:
        raise UserError(
            "model.vocab_size",
            model.vocab_size,
            f"must be at least {tokenizer_vocab_size}, the vocabulary size of "
            f"tokenizer={config.tokenizer.name}; 0 uses that size",
        )
    return model


def _count_steps(settings: PhaseConfig, tokens_per_step: int, flops_per_step: int) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.tokens is not None:
        return math.ceil(settings.tokens / tokens_per_step)
    assert settings.flops is not None
    return math.ceil(settings.flops / flops_per_step)
