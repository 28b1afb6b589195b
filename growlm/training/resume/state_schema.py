"""Define the schema of resume states, and open and check them before anything is restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from growlm.checkpoint.resume_state import RESUME_SETTING, STATE_FILE, ResumeState
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.distributed.process_group import DistributedContext
from growlm.reporting.records import BoundaryRecord, HistoryRow, PhaseSummary, SetMeasures
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.escaping import summarize_error
from growlm.runtime.memory import is_out_of_memory
from growlm.storage.input_files import read_lines, translate_content_errors
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import NonNegativeInt, at_least, parse_as
from growlm.verification.router_collapse import RouterSnapshot

Seconds = Annotated[float, at_least(0)]


class HistoryPosition(TypedDict):
    """Length and checksum of the history written so far."""

    bytes: NonNegativeInt
    sha256: str


class RunProgressRecord(TypedDict):
    """Progress of the whole run."""

    global_step: NonNegativeInt
    seconds: Seconds
    phases: list[PhaseSummary]
    boundaries: list[BoundaryRecord]
    history: HistoryPosition


class RouterWatchRecord(TypedDict):
    """State of a `RouterCollapseDetector`."""

    first: RouterSnapshot | None
    last: RouterSnapshot | None
    said: list[str]


class RouterMonitorRecord(TypedDict):
    """The JSON part of a `RouterMonitor`'s state; its tensors are in `progress.safetensors`."""

    watch: RouterWatchRecord
    passes: NonNegativeInt


class PhaseProgressRecord(TypedDict):
    """State of a phase's `ProgressCallback`."""

    step: NonNegativeInt
    validated_step: NotRequired[int]
    """Written by growlm 0.1, and not needed."""
    first_loss: float | None
    final_loss: float | None
    initial_val_loss: float
    val_loss: float
    initial_evaluation: NotRequired[dict[str, SetMeasures]]
    evaluation: NotRequired[dict[str, SetMeasures]]
    training_seconds: Seconds
    seconds_since_row: float
    row_step: NonNegativeInt
    routers: NotRequired[RouterMonitorRecord]


class ChunkPositionRecord(TypedDict):
    """Position at which a chunk of a streamed source begins."""

    epoch: NonNegativeInt
    chunk: NonNegativeInt
    documents_read: NonNegativeInt
    place: NonNegativeInt | list[NonNegativeInt] | dict[str, Any] | None
    epoch_documents: NonNegativeInt | None


class StreamPositionRecord(TypedDict):
    """Position from which streamed data are read after a resume."""

    sample: NonNegativeInt
    document: NonNegativeInt
    offset: NonNegativeInt
    places: list[ChunkPositionRecord]


class RngStatesRecord(TypedDict):
    """States of the random generators of Python and NumPy."""

    python: list[Any]
    numpy: dict[str, Any]


class StateRecord(TypedDict):
    """The contents of `state.json`."""

    phase: str
    step: NonNegativeInt
    finished: NotRequired[bool]
    """Whether the phase is over, perhaps before its last step."""
    ended_at: NotRequired[NonNegativeInt]
    """In the state of the end of the last phase: how many steps the phase was to have. Unless it has more by now,
    only what follows the last step is left to do."""
    phase_seconds: Seconds
    run: RunProgressRecord
    data: NotRequired[StreamPositionRecord | None]
    progress: NotRequired[PhaseProgressRecord]
    scaling: NotRequired[dict[str, Any]]
    random: NotRequired[RngStatesRecord]


def open_state(
    folder: Path, dist_context: DistributedContext | None = None, is_checked: bool = False
) -> ResumeState:
    """Open a resume state with `ResumeState.open`, and check its record.

    Returns:
        The state, whose record holds phases and boundaries as objects.

    Raises:
        UserError: If it is damaged, or its record is invalid.
    """
    state = ResumeState.open(folder, dist_context, is_checked)
    with translate_content_errors(folder / STATE_FILE, RESUME_SETTING):
        record = parse_as(StateRecord, state.record)
        if "random" in record:
            _check_random_states(record["random"])
    state.record.update(record)
    return state


def check_state_phase(state: ResumeState, plan: Plan) -> PlannedPhase:
    """Return the phase of the plan that a state belongs to.

    Raises:
        UserError: If the plan has no such phase, the phase is shorter, or the state is incomplete.
    """
    name, step = state.record["phase"], state.record["step"]
    phase = next((phase for phase in plan.phases if phase.name == name), None)
    path = state.folder / STATE_FILE
    if phase is None:
        raise UserError(RESUME_SETTING, path, f"phase {name!r} is not in the plan")
    if step > phase.num_steps:
        reason = f"step is {step}, but phase {name} has only {phase.num_steps} steps"
        raise UserError(RESUME_SETTING, path, reason)
    needed = () if is_phase_finished(state.record, phase) else ("progress", "scaling", "random")
    if missing := [key for key in needed if key not in state.record]:
        raise UserError(RESUME_SETTING, path, f"{missing[0]} is missing")
    if phase.model_config.is_moe and needed and "routers" not in state.record["progress"]:
        raise UserError(RESUME_SETTING, path, "progress.routers is missing")
    return phase


def is_phase_finished(record: Mapping[str, Any], phase: PlannedPhase) -> bool:
    """Return whether a state's phase is over; states of growlm 0.1 say so by their step alone."""
    return bool(record.get("finished", record["step"] >= phase.num_steps))


def read_history_rows(history: Path, root: Path) -> Iterator[HistoryRow]:
    """Yield the rows of a run's history, whose checksum has been compared.

    Raises:
        UserError: If a line is not valid JSON.
    """
    for number, line in enumerate(read_lines(history, RESUME_SETTING, root), start=1):
        with translate_content_errors(history, RESUME_SETTING):
            row = parse_as(
                dict[str, Any], parse_json(line.decode(), allow_nan=True), f"line {number}"
            )
        yield row


@contextmanager
def translate_restore_errors(path: Path) -> Iterator[None]:
    """Turn exceptions raised while restoring from a state's file into a `UserError` that names the file.

    Raises:
        UserError: In place of any exception that unsuitable contents may raise.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {summarize_error(error)}"
        raise UserError(RESUME_SETTING, path, f"does not fit the run ({reason})") from error


def _check_random_states(record: RngStatesRecord) -> None:
    """Check random states by setting them on temporary generators.

    Raises:
        ValueError: If they are invalid.
    """
    try:
        version, words, gauss = record["python"]
        random.Random().setstate((version, tuple(words), gauss))
        numpy = record["numpy"]
        key = np.array(numpy["state"]["key"], dtype=np.uint32)
        np.random.RandomState().set_state({**numpy, "state": {**numpy["state"], "key": key}})
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"random holds invalid generator states: {error}") from error
