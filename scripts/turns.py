"""Time several sides against each other, each in its own process, in turns.

Own processes give every side its own allocator settings and peak memory; turns expose all sides to the same noise.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from rich.progress import Progress

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.runtime.memory import peak_memory_bytes, release_memory, reset_peak_memory

Step = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """Measurements of one side over all rounds."""

    seconds: list[float]
    """Seconds of one step, in each round."""
    peak_memory: int
    """Peak resident bytes of the process, above its memory before it built anything."""

    @property
    def median(self) -> float:
        """Median seconds of one step."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as they are written to the file of a benchmark."""
        return asdict(self) | {"median": self.median}


class Turns:
    """Connection of a side to the process that gives out the turns."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._ready = False

    def await_turn(self) -> int:
        """Wait for a turn and return its number of steps, 0 at the end.

        The first call reports that the side is ready.
        """
        if not self._ready:
            self._ready = True
            self.connection.send(None)
        return self.connection.recv()

    def report(self, seconds: float) -> None:
        """Report the seconds that the turn took."""
        self.connection.send(seconds)


@dataclass(frozen=True)
class Steps:
    """A side that repeats one step, with a function that makes it and a number of warm-up steps."""

    make: Callable[..., Step]
    arguments: tuple[Any, ...] = ()
    warmup: int = 4

    def __call__(self, turns: Turns) -> None:
        """Repeat the step until there are no more turns."""
        step = self.make(*self.arguments)
        for _ in range(self.warmup):
            step()
        while steps := turns.await_turn():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            turns.report(time.perf_counter() - start)


def take_turns(
    sides: Mapping[str, Callable[[Turns], None]], rounds: int, steps: int
) -> dict[str, Measured]:
    """Time several sides against each other.

    Args:
        sides: By name, a picklable function that calls `await_turn` and `report` alternately until it receives 0
            steps.
        rounds: Number of turns of every side.
        steps: Number of steps in a turn.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    connections: dict[str, Connection] = {}
    processes = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(sides) * (rounds + 1))
        for name, side in sides.items():
            progress.update(task, description=f"{name}: getting ready")
            connections[name], child_connection = context.Pipe()
            process = context.Process(target=_run_side, args=(side, child_connection), daemon=True)
            process.start()
            child_connection.close()
            processes.append(process)
            connections[name].recv()  # one after another, because getting ready takes time too
            progress.advance(task)
        for _ in range(rounds):
            for name, connection in connections.items():
                progress.update(task, description=name)
                connection.send(steps)
                seconds[name].append(connection.recv() / steps)
                progress.advance(task)
    for connection in connections.values():
        connection.send(0)
    peaks = {name: connection.recv() for name, connection in connections.items()}
    for process in processes:
        process.join()
    return {name: Measured(seconds[name], peaks[name]) for name in sides}


def _run_side(side: Callable[[Turns], None], connection: Connection) -> None:
    release_memory()
    reset_peak_memory()
    before = peak_memory_bytes()
    side(Turns(connection))
    connection.send(peak_memory_bytes() - before)
