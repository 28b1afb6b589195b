"""Define the fields of a run's files that a report reads; other keys are ignored.

Only the fields that locate a line (phase and counters) are required: files of earlier versions lack some keys, and
those of a running run are incomplete.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from growlm.storage.typed_values import NonNegativeInt

MAX_MAGNITUDE = 1e100
"""Largest magnitude of a number, small enough that sums and products of numbers stay finite."""


def _check_magnitude(value: float) -> str | None:
    return (
        None
        if -MAX_MAGNITUDE < value < MAX_MAGNITUDE
        else f"must be a number between ±{MAX_MAGNITUDE:g}"
    )


BoundedNumber = Annotated[float, _check_magnitude]
"""Number that is not NaN and does not exceed `MAX_MAGNITUDE`."""


class BaselineSchema(TypedDict, total=False):
    """`baseline` section of `config.yaml`."""

    of: str | None
    kind: str | None
    equal: str | None


class PhaseConfigSchema(TypedDict, total=False):
    """Phase of `config.yaml`."""

    grow: list[dict[str, dict[str, Any] | None]] | None


class RunConfigSchema(TypedDict, total=False):
    """Contents of `config.yaml`."""

    name: str
    seed: int
    baseline: BaselineSchema | None
    phases: dict[str, PhaseConfigSchema | None] | None


class SessionSchema(TypedDict, total=False):
    """Start or resume of a run, in `provenance.json`."""

    started: str | None
    command: str | None
    folder: str | None
    git_commit: str | None
    host: str | None
    system: str | None
    processor: str | None
    processes: NonNegativeInt | None
    versions: dict[str, str | None]


class ModelSchema(TypedDict, total=False):
    """Model of a phase of `plan.json`."""

    num_experts: int | None
    top_k: int | None


class PlannedPhaseSchema(TypedDict):
    """Phase of `plan.json`."""

    name: str
    total_parameters: NotRequired[float | None]
    active_parameters: NotRequired[float | None]
    steps: NotRequired[NonNegativeInt | None]
    model: NotRequired[ModelSchema | None]


class CheckSchema(TypedDict, total=False):
    """Result of a check at a boundary."""

    status: str
    summary: str | None
    figures: dict[str, Any]


class LayerDifferenceSchema(TypedDict, total=False):
    """Differences of one layer in the functional identity check."""

    layer: int
    old_layer: int | None
    max_difference: float
    mean_difference: float


class FunctionalCheckSchema(TypedDict, total=False):
    """Measurements of the functional identity check."""

    layers: list[LayerDifferenceSchema]


class NoiseSchema(TypedDict, total=False):
    """Noise that a growth added."""

    matrices: int
    sigma_min: float | None
    sigma_max: float | None


class LayerMovementSchema(TypedDict):
    """Mixture of experts of a grown model."""

    layer: int
    old_layer: int | None
    choices: NonNegativeInt
    stayed: NonNegativeInt | None
    moves: list[list[NonNegativeInt]]


class ExpertMovementSchema(TypedDict):
    """Movement of the probe's tokens between experts over a growth."""

    experts: list[NonNegativeInt]
    layers: list[LayerMovementSchema]


_BOUNDARY = {
    "from": str,
    "to": str,
    "growth": list[str],
    "operators": list[dict[str, dict[str, Any]]],
    "summary": str,
    "loss_before": float | None,
    "loss_after": float | None,
    "jump": float | None,
    "max_logit_difference": float | None,
    "tolerance": float | None,
    "lossless": bool,
    "passed": bool,
    "checks": dict[str, CheckSchema | str],
    "noise": NoiseSchema,
    "optimizer_state": str,
    "seconds": float | None,
    "evaluation": dict[str, dict[str, float | None]],
    "expert_movement": ExpertMovementSchema,
}
BoundarySchema = TypedDict("BoundarySchema", _BOUNDARY, total=False)  # type: ignore[misc]
"""Boundary: complete in `boundaries.json`; in a history, `checks` has only the status of each check."""


class TrainedPhaseSchema(TypedDict, total=False):
    """Phase of `summary.json`."""

    name: str
    total_parameters: float | None
    active_parameters: float | None
    steps: NonNegativeInt | None
    tokens: float | None
    flops: float | None
    first_loss: float | None
    final_loss: float | None
    initial_val_loss: float | None
    val_loss: float | None
    val_bits_per_byte: float | None
    wall_time_s: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    sample: str | None
    initial_evaluation: dict[str, dict[str, float | None]]
    evaluation: dict[str, dict[str, float | None]]


class ReusedPhasesSchema(TypedDict, total=False):
    """Phases of `summary.json` that another run has trained."""

    phases: list[str]
    run: str
    seconds: float


class SummarySchema(TypedDict, total=False):
    """Contents of `summary.json`."""

    device: str | None
    precision: str | None
    wall_time_s: float | None
    tokens: float | None
    flops: float | None
    reused: ReusedPhasesSchema | None
    phases: list[TrainedPhaseSchema]


class CountersSchema(TypedDict):
    """Phase and counters of a history line."""

    phase: str
    step: NotRequired[NonNegativeInt | None]
    global_step: BoundedNumber
    tokens: BoundedNumber
    flops: BoundedNumber
    time_s: BoundedNumber


class TrainingRowSchema(CountersSchema):
    """History line of a training step."""

    loss: float


class ValidationRowSchema(CountersSchema):
    """History line of a validation."""

    val_loss: float
    evaluation: NotRequired[dict[str, dict[str, float | None]]]


class WarningSchema(TypedDict, total=False):
    """History line of a warning."""

    phase: str
    step: int | None
    text: str


class FinishedPhaseSchema(TypedDict, total=False):
    """History line of the end of a phase."""

    phase: str
    sample: str | None
