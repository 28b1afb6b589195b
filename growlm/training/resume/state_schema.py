"""What the files of a state must hold for a run to go on from it, checked before anything is taken from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from growlm.checkpoint.resume_state import KEY, RECORD, RunState
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.distributed.process_group import World
from growlm.reporting.records import BoundaryRecord, PhaseSummary, Row
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import reason_of
from growlm.storage.input_files import read_lines, wrong_content
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import Count, at_least, typed
from growlm.verification.router_lock import RouterState

Seconds = Annotated[float, at_least(0)]


class HistoryPosition(TypedDict):
    """How much of the history was written."""

    bytes: Count
    sha256: str


class RunSoFar(TypedDict):
    """What is known of the whole run."""

    global_step: Count
    seconds: Seconds
    phases: list[PhaseSummary]
    boundaries: list[BoundaryRecord]
    history: HistoryPosition


class Watch(TypedDict):
    """What `RouterWatch` has seen and said."""

    first: RouterState | None
    last: RouterState | None
    said: list[str]


class Routers(TypedDict):
    """What is known of the routers of a phase."""

    watch: Watch
    passes: Count


class Progress(TypedDict):
    """The counters of a phase."""

    step: Count
    validated_step: int
    first_loss: float | None
    final_loss: float | None
    initial_val_loss: float
    val_loss: float
    training_seconds: Seconds
    seconds_since_row: float
    row_step: Count
    routers: NotRequired[Routers]


class ChunkPlaceRecord(TypedDict):
    """Where a chunk of a streamed source begins."""

    epoch: Count
    chunk: Count
    documents_read: Count
    place: Count | list[Count] | dict[str, Any] | None
    epoch_documents: Count | None


class Mark(TypedDict):
    """Where streamed data are read on from."""

    sample: Count
    document: Count
    offset: Count
    places: list[ChunkPlaceRecord]


class RandomStates(TypedDict):
    """Those of Python and NumPy."""

    python: list[Any]
    numpy: dict[str, Any]


class StateRecord(TypedDict):
    """The contents of `state.json`."""

    phase: str
    step: Count
    phase_seconds: Seconds
    run: RunSoFar
    data: NotRequired[Mark | None]
    progress: NotRequired[Progress]
    scaling: NotRequired[dict[str, Any]]
    random: NotRequired[RandomStates]


def open_state(folder: Path, world: World | None = None, is_checked: bool = False) -> RunState:
    """Open a state of a run, as `RunState.open` does, and check its record.

    Returns:
        The state; what its record says of phases and boundaries is built already.

    Raises:
        UserError: If it is damaged, or its record is none that a run could go on from.
    """
    state = RunState.open(folder, world, is_checked)
    with wrong_content(folder / RECORD, KEY):
        record = typed(StateRecord, state.record)
        if "random" in record:
            _check_random_states(record["random"])
    state.record.update(record)
    return state


def check_phase(state: RunState, plan: Plan) -> PlannedPhase:
    """Return the phase that a state is of.

    Raises:
        UserError: If the plan has no such phase, or none of so many steps.
    """
    name, step = state.record["phase"], state.record["step"]
    phase = next((phase for phase in plan.phases if phase.name == name), None)
    path = state.folder / RECORD
    if phase is None:
        raise UserError(KEY, path, f"phase is {name!r}, which the plan does not have")
    if step > phase.steps:
        raise UserError(KEY, path, f"step is {step}, and {name} has {phase.steps}")
    needed = ("progress", "scaling", "random") if step < phase.steps else ()
    if missing := [key for key in needed if key not in state.record]:
        raise UserError(KEY, path, f"{missing[0]} is missing")
    if phase.model.is_moe and needed and "routers" not in state.record["progress"]:
        raise UserError(KEY, path, "progress.routers is missing")
    return phase


def saved_lines(history: Path, root: Path) -> Iterator[Row]:
    """Read the lines of a run's history, whose checksum was compared.

    Raises:
        UserError: If one is no JSON.
    """
    for number, line in enumerate(read_lines(history, KEY, root), start=1):
        with wrong_content(history, KEY):
            row = typed(dict[str, Any], parse_json(line.decode(), allow_nan=True), f"line {number}")
        yield row


@contextmanager
def restoring(path: Path) -> Iterator[None]:
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
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(KEY, path, f"does not fit the run ({reason})") from error


def _check_random_states(record: RandomStates) -> None:
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
