"""Provide rank, world size and collective operations of a run; `startup.py` creates the process group.

A run is one process, or several started by `torchrun` or a launcher that sets the same variables; each trains on
its share of every batch. With a single process, every method works without communication.
"""

from __future__ import annotations

import os
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
"""Seconds between checks whether rank 0 has set the key that other ranks wait for."""
PEER_LOST_MESSAGE = (
    "another process of this run has ended, or did not answer within trainer.timeout_minutes"
)


class PeerLostError(RunError):
    """Another process of the run has ended or does not respond."""


class PeerFailedError(RunError):
    """Another process of the run has failed and reports the reason itself.

    Args:
        code: Exit code of that process.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("another process of this run has failed")


@dataclass
class DistributedContext:
    """The process group of a run, as seen by one process.

    Attributes:
        rank: Rank of this process, from 0.
        world_size: Number of processes.
        local_rank: Rank of this process on its machine, from 0.
        local_world_size: Number of processes on this machine.
        timeout: Longest time that a process may keep the others waiting.
        store: Key-value store on rank 0's machine; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    timeout: timedelta = timedelta(minutes=30)
    store: dist.Store | None = field(default=None, repr=False)
    _num_published: int = field(default=0, repr=False)

    @staticmethod
    def current() -> DistributedContext:
        """Return the process group that torch has initialized, or a single process.

        It has no store, so `run_on_rank0` takes a collective call, in which the other ranks wait for rank 0.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return DistributedContext()
        local_rank, local_size = (
            int(os.environ.get(name, default))
            for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
        )
        return DistributedContext(dist.get_rank(), dist.get_world_size(), local_rank, local_size)

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def run_on_rank0(self, action: Callable[[], T]) -> T:
        """Run a function on rank 0 only, however long it takes, and return its result on all ranks.

        Raises:
            PeerFailedError: On other ranks, if the function failed on rank 0.
        """
        if self.world_size == 1:
            return action()
        if self.store is None:
            return self._run_on_rank0_collectively(action)
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
        is_done, value = pickle.loads(
            self.store.get(key)
        )  # only processes of this run write to the store
        if not is_done:
            raise PeerFailedError(value)
        return value

    def _run_on_rank0_collectively(self, action: Callable[[], T]) -> T:
        outcome: list[Any] = [None]
        own_error: BaseException | None = None
        if self.is_rank0:
            try:
                outcome = [(True, action())]
            except BaseException as error:
                own_error, outcome = error, [(False, get_exit_code(error))]
        dist.broadcast_object_list(outcome)
        if own_error is not None:
            raise own_error
        is_done, value = outcome[0]
        if not is_done:
            raise PeerFailedError(value)
        return value

    def wait_for_key(self, key: str, max_seconds: float = float("inf")) -> bool:
        """Wait until another process has set a key of the store.

        Args:
            key: Key to wait for.
            max_seconds: Longest time to wait, even if the store responds.

        Returns:
            Whether the key was set.

        Raises:
            PeerLostError: If the store, on rank 0's machine, is gone or does not respond within the timeout.
        """
        store = self.store
        assert store is not None
        is_set, is_over = threading.Event(), threading.Event()
        last_response = time.monotonic()

        def poll() -> None:
            nonlocal last_response
            with suppress(RuntimeError):  # the store is gone
                while not is_over.is_set():
                    if store.check([key]):
                        is_set.set()
                        return
                    last_response = time.monotonic()
                    time.sleep(POLL_INTERVAL_S)

        # In a separate thread: if the network is cut, a request to the store never returns.
        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        start, timeout = time.monotonic(), self.timeout.total_seconds()
        try:
            while not is_set.wait(POLL_INTERVAL_S) and time.monotonic() - start < max_seconds:
                is_gone = not poller.is_alive() and not is_set.is_set()
                if is_gone or time.monotonic() - last_response > timeout:
                    raise PeerLostError(f"{PEER_LOST_MESSAGE} (rank 0's store does not respond)")
        finally:
            is_over.set()
        return is_set.is_set()

    def _publish(self, key: str, value: object) -> None:
        assert self.store is not None
        self.store.set(key, pickle.dumps(value))  # type: ignore[arg-type] # accepts bytes

    def rank0_first(self, action: Callable[[], T]) -> T:
        """Run a function on rank 0, then on the other ranks, which find the files that rank 0 wrote.

        Raises:
            PeerFailedError: On other ranks, if the function failed on rank 0.
            RunError: On other ranks, if the function raised a `UserError` there but not on rank 0.
        """
        result: list[T] = []
        self.run_on_rank0(lambda: result.append(action()))
        if not result:
            try:
                result.append(action())
            except UserError as error:
                raise RunError(f"only process {self.rank}: {error}") from error
        return result[0]

    def all_or_raise(self, action: Callable[[], T]) -> T:
        """Run a function on every rank; if it fails on one, raise on all.

        Raises:
            PeerFailedError: On ranks where it succeeded, if it failed on another.
        """
        result: list[T] = []
        own_error: BaseException | None = None
        try:
            result.append(action())
        except BaseException as error:
            own_error = error
        codes = self.all_gather(None if own_error is None else get_exit_code(own_error))
        if own_error is not None:
            raise own_error
        for code in codes:
            if code is not None:
                raise PeerFailedError(code)
        return result[0]

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over all processes; a new tensor without gradient if there are several."""
        return self.all_reduce_sum(tensor) / self.world_size if self.world_size > 1 else tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes; a new tensor without gradient if there are several."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise maximum over all processes."""
        if self.world_size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return numbers.tolist()

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        self.all_gather(None)
