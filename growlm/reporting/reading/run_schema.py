"""What a run's files must hold for a report to show it, as far as it shows it; other keys stay unread.

Nothing is required but what tells where a line belongs: files of earlier versions lack some keys, and those of a
run that goes on are not whole.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from growlm.storage.typed_values import NonNegativeInt

MAX_MAGNITUDE = 1e100
"""Of a figure. Sums and products of such are still finite."""


def _check_magnitude(value: float) -> str | None:
    return (
        None
        if -MAX_MAGNITUDE < value < MAX_MAGNITUDE
        else f"must be a number between ±{MAX_MAGNITUDE:g}"
    )


BoundedNumber = Annotated[float, _check_magnitude]
"""A figure that must be there: not NaN, and not too large to be added up."""


class BaselineSchema(TypedDict, total=False):
    """Of a config."""

    of: str | None
    kind: str | None
    equal: str | None


class PhaseConfigSchema(TypedDict, total=False):
    """A phase of a config."""

    grow: list[dict[str, dict[str, Any] | None]] | None


class RunConfigSchema(TypedDict, total=False):
    """The contents of `config.yaml`."""

    name: str
    seed: int
    baseline: BaselineSchema | None
    phases: dict[str, PhaseConfigSchema | None] | None


class ModelSchema(TypedDict, total=False):
    """A planned model."""

    num_experts: int | None
    top_k: int | None


class PlannedPhaseSchema(TypedDict):
    """A phase of `plan.json`."""

    name: str
    total_parameters: NotRequired[float | None]
    active_parameters: NotRequired[float | None]
    steps: NotRequired[NonNegativeInt | None]
    model: NotRequired[ModelSchema | None]


class CheckSchema(TypedDict, total=False):
    """A check of a boundary."""

    status: str
    summary: str | None
    figures: dict[str, Any]


class LayerDifferenceSchema(TypedDict, total=False):
    """A layer in the figures of the check of functional identity."""

    layer: int
    old_layer: int | None
    max_difference: float
    mean_difference: float


class FunctionalCheckSchema(TypedDict, total=False):
    """The figures of that check."""

    layers: list[LayerDifferenceSchema]


class NoiseSchema(TypedDict, total=False):
    """The noise of a growth."""

    matrices: int
    sigma_min: float | None
    sigma_max: float | None


_BOUNDARY = {
    "from": str,
    "to": str,
    "growth": list[str],
    "operators": list[dict[str, dict[str, Any]]],
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
}
BoundarySchema = TypedDict("BoundarySchema", _BOUNDARY, total=False)  # type: ignore[misc]
"""A boundary: whole in `boundaries.json`, in a history with the checks' outcomes only."""


class TrainedPhaseSchema(TypedDict, total=False):
    """A phase of `summary.json`."""

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
    wall_time_s: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    sample: str | None


class ReusedPhasesSchema(TypedDict, total=False):
    """Of a summary: phases that another run has trained."""

    phases: list[str]
    run: str
    seconds: float


class SummarySchema(TypedDict, total=False):
    """The contents of `summary.json`."""

    device: str | None
    precision: str | None
    wall_time_s: float | None
    tokens: float | None
    flops: float | None
    reused: ReusedPhasesSchema | None
    phases: list[TrainedPhaseSchema]


class CountersSchema(TypedDict):
    """Where a line of a history stands."""

    phase: str
    step: NotRequired[NonNegativeInt | None]
    global_step: BoundedNumber
    tokens: BoundedNumber
    flops: BoundedNumber
    time_s: BoundedNumber


class TrainingRowSchema(CountersSchema):
    """A training step."""

    loss: float


class ValidationRowSchema(CountersSchema):
    """A validation."""

    val_loss: float


class WarningSchema(TypedDict, total=False):
    """Something that a run warned of."""

    phase: str
    step: int | None
    text: str


class FinishedPhaseSchema(TypedDict, total=False):
    """The end of a phase."""

    phase: str
    sample: str | None
