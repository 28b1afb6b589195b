"""What the files of a state must hold for a run to go on from it, checked before anything is taken from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from growlm.checkpoint.resume_state import RESUME_SETTING, STATE_FILE, ResumeState
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.distributed.process_group import DistributedContext
from growlm.reporting.records import BoundaryRecord, HistoryRow, PhaseSummary
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import read_lines, translate_content_errors
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import NonNegativeInt, at_least, parse_as
from growlm.verification.router_lock import RouterSnapshot

Seconds = Annotated[float, at_least(0)]


class HistoryPosition(TypedDict):
    """How much of the history was written."""

    bytes: NonNegativeInt
    sha256: str


class RunProgressRecord(TypedDict):
    """What is known of the whole run."""

    global_step: NonNegativeInt
    seconds: Seconds
    phases: list[PhaseSummary]
    boundaries: list[BoundaryRecord]
    history: HistoryPosition


class RouterWatchRecord(TypedDict):
    """What `RouterWatch` has seen and said."""

    first: RouterSnapshot | None
    last: RouterSnapshot | None
    said: list[str]


class RoutersRecord(TypedDict):
    """What is known of the routers of a phase."""

    watch: RouterWatchRecord
    passes: NonNegativeInt


class PhaseProgressRecord(TypedDict):
    """The counters of a phase."""

    step: NonNegativeInt
    validated_step: int
    first_loss: float | None
    final_loss: float | None
    initial_val_loss: float
    val_loss: float
    training_seconds: Seconds
    seconds_since_row: float
    row_step: NonNegativeInt
    routers: NotRequired[RoutersRecord]


class ChunkPositionRecord(TypedDict):
    """Where a chunk of a streamed source begins."""

    epoch: NonNegativeInt
    chunk: NonNegativeInt
    documents_read: NonNegativeInt
    place: NonNegativeInt | list[NonNegativeInt] | dict[str, Any] | None
    epoch_documents: NonNegativeInt | None


class StreamPositionRecord(TypedDict):
    """Where streamed data are read on from."""

    sample: NonNegativeInt
    document: NonNegativeInt
    offset: NonNegativeInt
    places: list[ChunkPositionRecord]


class RngStatesRecord(TypedDict):
    """Those of Python and NumPy."""

    python: list[Any]
    numpy: dict[str, Any]


class StateRecord(TypedDict):
    """The contents of `state.json`."""

    phase: str
    step: NonNegativeInt
    phase_seconds: Seconds
    run: RunProgressRecord
    data: NotRequired[StreamPositionRecord | None]
    progress: NotRequired[PhaseProgressRecord]
    scaling: NotRequired[dict[str, Any]]
    random: NotRequired[RngStatesRecord]


def open_state(
    folder: Path, dist_context: DistributedContext | None = None, is_checked: bool = False
) -> ResumeState:
    """Open a state of a run, as `RunState.open` does, and check its record.

    Returns:
        The state; what its record says of phases and boundaries is built already.

    Raises:
        UserError: If it is damaged, or its record is none that a run could go on from.
    """
    state = ResumeState.open(folder, dist_context, is_checked)
    with translate_content_errors(folder / STATE_FILE, RESUME_SETTING):
        record = parse_as(StateRecord, state.record)
        if "random" in record:
            _check_random_states(record["random"])
    state.record.update(record)
    return state


def check_state_phase(state: ResumeState, plan: Plan) -> PlannedPhase:
    """Return the phase that a state is of.

    Raises:
        UserError: If the plan has no such phase, or none of so many steps.
    """
    name, step = state.record["phase"], state.record["step"]
    phase = next((phase for phase in plan.phases if phase.name == name), None)
    path = state.folder / STATE_FILE
    if phase is None:
        raise UserError(RESUME_SETTING, path, f"phase is {name!r}, which the plan does not have")
    if step > phase.num_steps:
        raise UserError(RESUME_SETTING, path, f"step is {step}, and {name} has {phase.num_steps}")
    needed = ("progress", "scaling", "random") if step < phase.num_steps else ()
    if missing := [key for key in needed if key not in state.record]:
        raise UserError(RESUME_SETTING, path, f"{missing[0]} is missing")
    if phase.model_config.is_moe and needed and "routers" not in state.record["progress"]:
        raise UserError(RESUME_SETTING, path, "progress.routers is missing")
    return phase


def read_history_rows(history: Path, root: Path) -> Iterator[HistoryRow]:
    """Read the lines of a run's history, whose checksum was compared.

    Raises:
        UserError: If one is no JSON.
    """
    for number, line in enumerate(read_lines(history, RESUME_SETTING, root), start=1):
        with translate_content_errors(history, RESUME_SETTING):
            row = parse_as(
                dict[str, Any], parse_json(line.decode(), allow_nan=True), f"line {number}"
            )
        yield row


@contextmanager
def translate_restore_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a state's file is taken over into an error about the file.

    Raises:
        UserError: For whatever a content that does not fit may raise.
    """
    try:
        yield
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {summarize_error(error)}"
        raise UserError(RESUME_SETTING, path, f"does not fit the run ({reason})") from error


def _check_random_states(record: RngStatesRecord) -> None:
    """Check them on generators of nobody's.

    Raises:
        ValueError: If they are none.
    """
    try:
        version, words, gauss = record["python"]
        random.Random().setstate((version, tuple(words), gauss))
        numpy = record["numpy"]
        key = np.array(numpy["state"]["key"], dtype=np.uint32)
        np.random.RandomState().set_state({**numpy, "state": {**numpy["state"], "key": key}})
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"random holds no states of generators: {error}") from error
