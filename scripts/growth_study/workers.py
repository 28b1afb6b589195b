"""The processes that train: one thread on one core each, which together do more than one process on all cores."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized

import torch

from growlm.runtime.errors import RunError
from growth_study.record_file import Record
from growth_study.runs import Run, Study, carry_out

STATE_SECONDS = 30
"""More than a run of the study takes to write its state."""


class Workers:
    """Processes that carry out runs. What a run gives does not depend on how many there are.

    Args:
        number: Of processes.
        study: What all runs have in common.
    """

    def __init__(self, number: int, study: Study) -> None:
        context = get_context("spawn")
        self._number, self._study = number, study
        self._begun = context.Value("i", 0)
        self._pool = ProcessPoolExecutor(number, context, _begin, (self._begun, os.getpid()))
        self._running: dict[Future[Record], Sequence[Run]] = {}

    @property
    def has_room(self) -> bool:
        """Whether a process waits for work."""
        return len(self._running) < self._number

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """End; runs that train write their state first."""
        if self._running:
            processes = list((self._pool._processes or {}).values())
            for process in processes:
                process.terminate()
            for process in processes:
                # One that dies between two runs may leave the queue locked, where the others wait for ever.
                process.join(STATE_SECONDS)
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    @property
    def training(self) -> list[Run]:
        """At this moment."""
        return [group[0] for group in self._running.values()]

    @property
    def running(self) -> list[Run]:
        """At this moment, and right after."""
        return [run for group in self._running.values() for run in group]

    def begin(self, group: Sequence[Run]) -> None:
        """Let a process carry out runs, one after another.

        Raises:
            RunError: If a process has died.
        """
        try:
            self._running[self._pool.submit(carry_out, group[0], self._study)] = group
        except BrokenProcessPool as error:
            raise RunError("a process died, for want of memory perhaps; again goes on") from error

    def next_done(self) -> list[tuple[Run, Record | BaseException]]:
        """Wait until runs have ended, and begin those after them; each with its record, or why there is none."""
        ended = wait(self._running, return_when=FIRST_COMPLETED).done
        found: list[tuple[Run, Record | BaseException]] = []
        for future in ended:
            run, *others = self._running.pop(future)
            error = future.exception()
            found.append((run, future.result() if error is None else error))
            if others and error is None:
                self.begin(others)
        return found


def _begin(begun: Synchronized[int], parent: int) -> None:
    """Take a core; end when the process that asked for the work has ended."""
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    os.setsid()  # Ctrl-C is for the study, which ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while True:
        time.sleep(1)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # first for the run, then for the process
