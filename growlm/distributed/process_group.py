"""The processes of a run: which one this is, and how they agree. How they meet: `meeting.py`.

A run is one process, or several that `torchrun` (or anything that sets its variables) started; each trains on its
share of every batch. Nothing in here is needed for one process alone, and every method then does the obvious.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import get_exit_code

T = TypeVar("T")

POLL_INTERVAL_S = 0.05
"""Seconds between looks at whether the first process has finished what the others wait for."""
PEER_LOST_MESSAGE = (
    "another process of this run has ended, or did not answer within trainer.timeout_minutes"
)


class PeerLostError(RunError):
    """Another process of the run has ended, or does not answer."""


class PeerFailedError(RunError):
    """Another process of the run has failed, and says why.

    Args:
        code: Its exit code.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("another process of this run has failed")


@dataclass
class DistributedContext:
    """All processes of a run, as one of them sees them.

    Attributes:
        rank: Of this process, from 0.
        size: Number of processes.
        local_rank: Of this process on its machine.
        local_size: Processes on this machine.
        timeout: How long any of them may keep the others waiting.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    timeout: timedelta = timedelta(minutes=30)
    store: dist.Store | None = field(default=None, repr=False)
    _num_published: int = field(default=0, repr=False)

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def run_on_rank0(self, action: Callable[[], T]) -> T:
        """Have the first process do something; everyone gets its result. However long it takes.

        Raises:
            EndedElsewhereError: In the others, if it failed in the first.
        """
        if self.world_size == 1:
            return action()
        assert self.store is not None
        key = f"growlm/{self._num_published}"
        self._num_published += 1
        if self.is_rank0:
            try:
                result = action()
            except BaseException as error:
                self._publish(key, (False, get_exit_code(error)))
                raise
            self._publish(key, (True, result))
            return result
        self.wait_for_key(key)
        is_done, value = pickle.loads(self.store.get(key))  # our own processes' alone
        if not is_done:
            raise PeerFailedError(value)
        return value

    def wait_for_key(self, key: str, max_seconds: float = float("inf")) -> bool:
        """Wait until another process has set a key of the store.

        Args:
            key: It.
            limit: Seconds to wait at most, however well the store answers.

        Returns:
            Whether it was set.

        Raises:
            LostProcessError: If the store, which is the first machine's, has gone or is silent for the timeout.
        """
        store = self.store
        assert store is not None
        is_set, is_over = threading.Event(), threading.Event()
        answered = time.monotonic()

        def look() -> None:
            nonlocal answered
            with suppress(RuntimeError):  # the store has gone
                while not is_over.is_set():
                    if store.check([key]):
                        is_set.set()
                        return
                    answered = time.monotonic()
                    time.sleep(POLL_INTERVAL_S)

        # In a thread of its own: where the network is cut, a look at the store never ends.
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        start, timeout = time.monotonic(), self.timeout.total_seconds()
        try:
            while not is_set.wait(POLL_INTERVAL_S) and time.monotonic() - start < max_seconds:
                is_gone = not looking.is_alive() and not is_set.is_set()
                if is_gone or time.monotonic() - answered > timeout:
                    raise PeerLostError(
                        f"{PEER_LOST_MESSAGE} (the first process's store is silent)"
                    )
        finally:
            is_over.set()
        return is_set.is_set()

    def _publish(self, key: str, value: object) -> None:
        assert self.store is not None
        self.store.set(key, pickle.dumps(value))  # type: ignore[arg-type] # it takes bytes, and gives them

    def rank0_first(self, action: Callable[[], T]) -> T:
        """Do something in every process, but in the first one before the others: they find what it left on disk.

        Raises:
            EndedElsewhereError: In the others, if it failed in the first.
        """
        mine: list[T] = []
        self.run_on_rank0(lambda: mine.append(action()))
        if not mine:
            try:
                mine.append(action())
            except UserError as error:
                raise RunError(f"process {self.rank} alone: {error}") from error
        return mine[0]

    def all_or_raise(self, action: Callable[[], T]) -> T:
        """Do something in every process; if it fails in one, it has failed in all.

        Raises:
            EndedElsewhereError: In those where it went well, if it failed in another.
        """
        result: list[T] = []
        failed: BaseException | None = None
        try:
            result.append(action())
        except BaseException as error:
            failed = error
        codes = self.all_gather(None if failed is None else get_exit_code(failed))
        if failed is not None:
            raise failed
        for code in codes:
            if code is not None:
                raise PeerFailedError(code)
        return result[0]

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, a new tensor; no gradient."""
        return self.all_reduce_sum(tensor) / self.world_size if self.world_size > 1 else tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, a new tensor; no gradient."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """The largest of each number that any process has."""
        if self.world_size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return numbers.tolist()

    def all_gather(self, value: T) -> list[T]:
        """What every process has, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        self.all_gather(None)
