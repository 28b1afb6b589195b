"""Train runs in worker processes of one core each, which is faster than one process on all cores."""

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
from growth_study.runs import Run, Study, train_run

STATE_SECONDS = 30
"""Time to wait for a run to write its state, more than any run of the study needs."""


class Workers:
    """Pool of processes that train runs; the results do not depend on the number of processes.

    Args:
        number: Number of processes.
        study: Settings that all runs share.
    """

    def __init__(self, number: int, study: Study) -> None:
        context = get_context("spawn")
        self._number, self._study = number, study
        self._num_started = context.Value("i", 0)
        self._pool = ProcessPoolExecutor(
            number, context, _init_worker, (self._num_started, os.getpid())
        )
        self._running: dict[Future[Record], Sequence[Run]] = {}

    @property
    def has_room(self) -> bool:
        """Whether a process is idle."""
        return len(self._running) < self._number

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the processes; runs that are training write their state first."""
        if self._running:
            processes = list((self._pool._processes or {}).values())
            for process in processes:
                process.terminate()
            for process in processes:
                # A process that dies between two runs may leave the queue locked; the others would wait forever.
                process.join(STATE_SECONDS)
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    @property
    def training(self) -> list[Run]:
        """Runs that are training now."""
        return [group[0] for group in self._running.values()]

    @property
    def running(self) -> list[Run]:
        """Runs that are training now, and those that follow in their groups."""
        return [run for group in self._running.values() for run in group]

    def start(self, group: Sequence[Run]) -> None:
        """Let a process train the runs of a group, one after another.

        Raises:
            RunError: If a process has died.
        """
        try:
            self._running[self._pool.submit(train_run, group[0], self._study)] = group
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died, possibly out of memory; run the command again to resume"
            ) from error

    def wait_for_runs(self) -> list[tuple[Run, Record | BaseException]]:
        """Wait until runs end, start the next runs of their groups, and return the ended ones.

        Returns:
            Each run that has ended, with its record or the error that ended it.
        """
        ended = wait(self._running, return_when=FIRST_COMPLETED).done
        found: list[tuple[Run, Record | BaseException]] = []
        for future in ended:
            run, *others = self._running.pop(future)
            error = future.exception()
            found.append((run, future.result() if error is None else error))
            if others and error is None:
                self.start(others)
        return found


def _init_worker(num_started: Synchronized[int], parent: int) -> None:
    """Bind this process to a core, and let it end when its parent ends."""
    with num_started.get_lock():
        number, num_started.value = num_started.value, num_started.value + 1
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    os.setsid()  # Ctrl-C goes to the study, which stops its workers
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while True:
        time.sleep(1)
        if os.getppid() != parent:
            # The first signal stops the run, a later one the process.
            os.kill(os.getpid(), signal.SIGTERM)
