"""What a run leaves behind, as data: the contents of boundaries.json and summary.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from growlm.model.model_size import ParameterReport
from growlm.verification.check_report import CheckReport, GrowthReport, Status

HistoryRow = dict[str, Any]
"""A line of training_history.jsonl."""


@dataclass(frozen=True)
class PhaseStart:
    """A phase about to train."""

    name: str
    index: int
    num_phases: int
    steps: int
    lr: float
    device: str
    precision: str
    parameters: ParameterReport


@dataclass(frozen=True)
class BoundaryRecord:
    """A growth between two phases."""

    from_phase: str
    to_phase: str
    growth: list[str]
    """What was done, a line each."""
    operators: list[dict[str, Any]]
    """With which settings."""
    report: GrowthReport
    noise: dict[str, Any]
    """Of the cancelling noise: number of `matrices`, smallest and largest `sigma`, how many were `capped`."""
    optimizer_state: str
    """The mode."""
    inexact_because: list[str]
    """In mode `exact`: why training cannot go on exactly as without the growth; empty if it does."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As in boundaries.json."""
        report = self.report
        return {
            "from": self.from_phase,
            "to": self.to_phase,
            "growth": self.growth,
            "operators": self.operators,
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
        }

    @property
    def findings(self) -> list[str]:
        """What the checks want known though nothing failed."""
        return [c.summary for c in self.report.checks.values() if c.status is Status.FINDING]


@dataclass(frozen=True)
class PhaseSummary:
    """A phase that has been trained."""

    name: str
    total_parameters: int
    active_parameters: int
    inactive_parameters: int
    idle_experts: int
    efficiency: float
    steps: int
    tokens: int
    """In this phase."""
    flops: int
    """In this phase."""
    first_loss: float | None
    """Training loss of the first step; None for a phase without steps."""
    final_loss: float | None
    """Training loss of the last step."""
    initial_val_loss: float
    """Validation loss before the first step."""
    val_loss: float
    """Validation loss after the last step."""
    val_bits_per_byte: float
    """The same in bits per byte of text."""
    wall_time_s: float
    """Of the whole phase: growth, checks, training, validation."""
    tokens_per_second: float | None
    """Of the training steps alone; None without any."""
    peak_memory_bytes: int
    """Largest resident memory of the process during the phase, growth included."""
    sample: str
    """Prompt and continuation by the trained model."""
    router_check: CheckReport | None
    """Check 5 on the phase; None for a dense model."""


@dataclass(frozen=True)
class ReusedPhases:
    """Phases that another run has trained, to the bit as this one would have."""

    phases: list[str]
    run: str
    """Folder of the run that trained the last of them."""
    seconds: float
    """That training them took there."""


@dataclass
class RunSummary:
    """The whole run: summary.json."""

    name: str
    seed: int
    device: str
    precision: str
    phases: list[PhaseSummary] = field(default_factory=list)
    boundaries: list[BoundaryRecord] = field(default_factory=list)
    wall_time_s: float = 0.0
    """With the seconds of phases that are reused."""
    initial_memory_bytes: int = 0
    """Resident when the first phase begins: interpreter, libraries, data."""
    reused: ReusedPhases | None = None
    states_written: int = 0
    """States to resume from, since the run was started or resumed."""
    states_s: float = 0.0
    """Seconds that writing them took."""

    def to_json(self) -> dict[str, Any]:
        """As in summary.json."""
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
