"""Define the records of phases, boundaries and whole runs, as saved in boundaries.json and summary.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from growlm.growth.operators.optional_methods import summarize_operator_dicts
from growlm.model.model_size import ParameterReport
from growlm.verification.check_report import CheckReport, GrowthReport, Status

HistoryRow = dict[str, Any]
"""A parsed line of training_history.jsonl."""
SetMeasures = dict[str, float]
"""What was measured of an evaluation set: `loss`, in nats per token, and `bits_per_byte`."""


@dataclass(frozen=True)
class PhaseStart:
    """Phase that is about to train."""

    name: str
    index: int
    num_phases: int
    steps: int
    lr: float
    device: str
    precision: str
    parameters: ParameterReport
    initial_memory_bytes: int = 0
    """Resident memory of the process when the run's first phase began, which forecasts leave out; 0 if unknown."""


@dataclass(frozen=True)
class BoundaryRecord:
    """Growth between two phases, with its checks."""

    from_phase: str
    to_phase: str
    growth: list[str]
    """Description of the growth, one line per change."""
    operators: list[dict[str, Any]]
    """Settings of the growth operators."""
    report: GrowthReport
    noise: dict[str, Any]
    """Statistics of the cancelling noise: `matrices` (count), `sigma_min`, `sigma_max`, `capped` (count); in half
    precision also `limited_max`, the largest share of a matrix's weights that were too small for it."""
    optimizer_state: str
    """Mode of the optimizer state transfer."""
    inexact_because: list[str]
    """In mode `exact`, the reasons why training does not continue exactly as without the growth; else empty."""
    seconds: float
    evaluation: dict[str, SetMeasures] = field(default_factory=dict)
    """For each evaluation set `loss_before` and `loss_after`, and the same in bits per byte; empty until they are
    measured after the growth, and without sets."""

    def with_evaluation(
        self, before: dict[str, SetMeasures], after: dict[str, SetMeasures]
    ) -> BoundaryRecord:
        """Return the record with what the sets measured at the end of one phase and the beginning of the next."""
        evaluation = {
            name: {f"{key}_before": value for key, value in before.get(name, {}).items()}
            | {f"{key}_after": value for key, value in measures.items()}
            for name, measures in after.items()
        }
        return replace(self, evaluation=evaluation)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that boundaries.json holds."""
        report = self.report
        return {
            "from": self.from_phase,
            "to": self.to_phase,
            "growth": self.growth,
            "operators": self.operators,
            "summary": summarize_operator_dicts(self.operators),
            "loss_before": report.loss_before,
            "loss_after": report.loss_after,
            "jump": report.jump,
            "max_logit_difference": report.max_logit_difference,
            "tolerance": report.tolerance,
            "lossless": report.lossless,
            "passed": bool(report),
            "checks": {name: asdict(check) for name, check in report.checks.items()},
            "noise": self.noise,
            "optimizer_state": self.optimizer_state,
            "inexact_because": self.inexact_because,
            "seconds": self.seconds,
            **({"evaluation": self.evaluation} if self.evaluation else {}),
            **({"expert_movement": report.expert_movement} if report.expert_movement else {}),
        }

    @property
    def findings(self) -> list[str]:
        """Summaries of the checks that report a finding but did not fail."""
        return [c.summary for c in self.report.checks.values() if c.status is Status.FINDING]


@dataclass(frozen=True)
class PhaseSummary:
    """Results of a trained phase."""

    name: str
    total_parameters: int
    active_parameters: int
    inactive_parameters: int
    idle_experts: int
    efficiency: float
    steps: int
    tokens: int
    """Tokens trained on in this phase."""
    flops: int
    """FLOPs spent in this phase."""
    first_loss: float | None
    """Training loss of the first step; None for a phase without steps."""
    final_loss: float | None
    """Training loss of the last step."""
    initial_val_loss: float
    """Validation loss before the first step."""
    val_loss: float
    """Validation loss after the last step."""
    val_bits_per_byte: float | None
    """`val_loss` in bits per byte of text; None if the bytes of the text are not known."""
    wall_time_s: float
    """Seconds for the whole phase: growth, checks, training and validation."""
    tokens_per_second: float | None
    """Throughput of the training steps alone; None if there were none."""
    peak_memory_bytes: int
    """Largest resident memory of the process during the phase, growth included."""
    sample: str
    """Prompt and continuation by the trained model."""
    router_check: CheckReport | None
    """Router collapse check of the phase (check 5); None for a dense model."""
    ended_early: str | None = None
    """Why the phase ended before its last step; None if it did not."""
    initial_evaluation: dict[str, SetMeasures] = field(default_factory=dict)
    """Measures of each evaluation set before the first step, by name."""
    evaluation: dict[str, SetMeasures] = field(default_factory=dict)
    """Measures of each evaluation set after the last step, by name."""


@dataclass(frozen=True)
class ReusedPhases:
    """Phases taken from another run, whose training is bit-identical to what this run would do."""

    phases: list[str]
    run: str
    """Folder of the run that trained the last of these phases."""
    seconds: float
    """Seconds that training these phases took in that run."""


@dataclass
class RunSummary:
    """Results of a whole run, as saved in summary.json."""

    name: str
    seed: int
    device: str
    precision: str
    phases: list[PhaseSummary] = field(default_factory=list)
    boundaries: list[BoundaryRecord] = field(default_factory=list)
    wall_time_s: float = 0.0
    """Seconds for the whole run, including those of reused phases."""
    initial_memory_bytes: int = 0
    """Resident memory when the first phase starts: interpreter, libraries and data."""
    reused: ReusedPhases | None = None
    states_written: int = 0
    """Resume states written since the run was started or resumed."""
    states_s: float = 0.0
    """Seconds spent writing resume states."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that summary.json holds."""
        return {
            "name": self.name,
            "seed": self.seed,
            "device": self.device,
            "precision": self.precision,
            "wall_time_s": self.wall_time_s,
            "initial_memory_bytes": self.initial_memory_bytes,
            "reused": None if self.reused is None else asdict(self.reused),
            "states_written": self.states_written,
            "states_s": self.states_s,
            "tokens": sum(phase.tokens for phase in self.phases),
            "flops": sum(phase.flops for phase in self.phases),
            "phases": [asdict(phase) for phase in self.phases],
            "boundaries": [boundary.to_json() for boundary in self.boundaries],
        }
