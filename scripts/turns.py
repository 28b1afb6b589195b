"""Taking turns: every side in a process of its own, one after another, round by round.

A process of its own gives every side its own allocator settings and peak memory; turns give all the same noise.
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
    """One side, over all rounds."""

    seconds: list[float]
    """Of one step, in each round."""
    peak_memory: int
    """Most resident bytes of the process, above what it had before it built anything."""

    @property
    def median(self) -> float:
        """Seconds of one step."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """For a benchmark's file."""
        return asdict(self) | {"median": self.median}


class Turns:
    """A side's end of the table."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._ready = False

    def await_turn(self) -> int:
        """Steps to take now; 0 at the end. The first call says that the side is ready."""
        if not self._ready:
            self._ready = True
            self.connection.send(None)
        return self.connection.recv()

    def report(self, seconds: float) -> None:
        """Seconds that the turn took."""
        self.connection.send(seconds)


@dataclass(frozen=True)
class Steps:
    """A side that repeats one step: what makes it, with which arguments, and how often it is tried before."""

    make: Callable[..., Step]
    arguments: tuple[Any, ...] = ()
    warmup: int = 4

    def __call__(self, turns: Turns) -> None:
        """Play."""
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
        sides: By name, what plays a side: calls `await_turn` and `report` in turn until it is told 0 steps. It is
            pickled.
        rounds: Turns of every side.
        steps: Of a turn.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    connections: dict[str, Connection] = {}
    processes = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(sides) * (rounds + 1))
        for name, side in sides.items():
            progress.update(task, description=f"{name}: getting ready")
            connections[name], other = context.Pipe()
            process = context.Process(target=_play, args=(side, other), daemon=True)
            process.start()
            other.close()
            processes.append(process)
            connections[name].recv()  # one after another: getting ready is work too
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


def _play(side: Callable[[Turns], None], connection: Connection) -> None:
    release_memory()
    reset_peak_memory()
    before = peak_memory_bytes()
    side(Turns(connection))
    connection.send(peak_memory_bytes() - before)
