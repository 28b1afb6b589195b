"""The processes of a run: which one this is, and how they agree.

A run is one process, or several that `torchrun` (or anything that sets its variables) started; each trains on its
share of every batch. Nothing in here is needed for one process alone, and every method then does the obvious.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from growlm.errors import RunError, UserError
from growlm.exit_codes import code_of

T = TypeVar("T")

LOOK_EVERY = 0.05
"""Seconds between looks at whether the first process has finished what the others wait for."""
ENDED = "ended"
FIRST_SPEAKS = 10.0
"""Seconds that the others wait for the first process to fail too; and when it has, a tenth of them more."""
GONE = "another process of this run has ended, or did not answer within trainer.timeout_minutes"
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "timed out",
    "Broken pipe",
    "failed to connect",
    "recvBytes failed",
    "sendBytes failed",
)
"""What torch's errors say when another process does not answer."""


class LostProcessError(RunError):
    """Another process of the run has ended, or does not answer."""


class EndedElsewhereError(RunError):
    """Another process of the run has failed, and says why.

    Args:
        code: Its exit code.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("another process of this run has failed")


@dataclass
class World:
    """All processes of a run, as one of them sees them.

    Attributes:
        rank: Of this process, from 0.
        size: Number of processes.
        local_rank: Of this process on its machine.
        local_size: Processes on this machine.
        timeout: How long any of them may keep the others waiting.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    timeout: timedelta = timedelta(minutes=30)
    store: dist.Store | None = field(default=None, repr=False)
    _turns: int = field(default=0, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def first(self, action: Callable[[], T]) -> T:
        """Have the first process do something; everyone gets its result. However long it takes.

        Raises:
            EndedElsewhereError: In the others, if it failed in the first.
        """
        if self.size == 1:
            return action()
        assert self.store is not None
        key = f"growlm/{self._turns}"
        self._turns += 1
        if self.is_first:
            try:
                result = action()
            except BaseException as error:
                self._publish(key, (False, code_of(error)))
                raise
            self._publish(key, (True, result))
            return result
        self.await_key(key)
        is_done, value = pickle.loads(self.store.get(key))  # our own processes' alone
        if not is_done:
            raise EndedElsewhereError(value)
        return value

    def await_key(self, key: str, limit: float = float("inf")) -> None:
        """Wait until another process has set a key of the store.

        Args:
            key: It.
            limit: Seconds to wait at most, however well the store answers.

        Raises:
            LostProcessError: If the store, which is the first machine's, does not answer for the run's timeout.
        """
        store = self.store
        assert store is not None
        found, answered = threading.Event(), [time.monotonic()]

        def look() -> None:
            while not found.is_set():
                try:
                    if store.check([key]):
                        found.set()
                except RuntimeError:
                    return
                answered[0] = time.monotonic()
                time.sleep(LOOK_EVERY)

        # In a thread of its own: where the network is cut, a look at the store never ends.
        threading.Thread(target=look, daemon=True).start()
        start, timeout = time.monotonic(), self.timeout.total_seconds()
        while not found.wait(LOOK_EVERY) and time.monotonic() - start < limit:
            if time.monotonic() - answered[0] > timeout:
                raise LostProcessError(f"{GONE} (the first process's store is silent)")
        found.set()

    def _publish(self, key: str, value: object) -> None:
        assert self.store is not None
        self.store.set(key, pickle.dumps(value))  # type: ignore[arg-type] # it takes bytes, and gives them

    def after_first(self, action: Callable[[], T]) -> T:
        """Do something in every process, but in the first one before the others: they find what it left on disk.

        Raises:
            EndedElsewhereError: In the others, if it failed in the first.
        """
        mine: list[T] = []
        self.first(lambda: mine.append(action()))
        if not mine:
            try:
                mine.append(action())
            except UserError as error:
                raise RunError(f"process {self.rank} alone: {error}") from error
        return mine[0]

    def together(self, action: Callable[[], T]) -> T:
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
        codes = self.gather(None if failed is None else code_of(failed))
        if failed is not None:
            raise failed
        for code in codes:
            if code is not None:
                raise EndedElsewhereError(code)
        return result[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, a new tensor; no gradient."""
        return self.sum(tensor) / self.size if self.size > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, a new tensor; no gradient."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each number that any process has."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return numbers.tolist()

    def gather(self, value: T) -> list[T]:
        """What every process has, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        self.gather(None)


def started_by_torchrun() -> bool:
    """Whether this process was started as one of a run's, by `torchrun` or something like it."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


@contextmanager
def join_world(accelerator: str, timeout: timedelta) -> Iterator[World]:
    """Meet the other processes of the run, for the time of the block.

    Args:
        accelerator: `cpu` or `gpu`.
        timeout: How long any of them may keep the others waiting in a step.

    Raises:
        LostProcessError: If one of them does not come.
    """
    if not started_by_torchrun():
        yield World()
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with lost_in_words():
        store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=timeout))
        # After `torchrun --max-restarts` has started all anew, the store has what the processes before left.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"growlm/{attempt}", store)
        if accelerator == "gpu":
            torch.cuda.set_device(local_rank)
        # Gloo for what lies in the machine's memory, whatever the accelerator.
        backend = "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo"
        device = torch.device("cuda", local_rank) if accelerator == "gpu" else None
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device,
        )
    turns = dist.PrefixStore("turns", store)
    world = World(rank, size, local_rank, local_size, timeout, turns)
    try:
        yield world
    except LostProcessError:
        raise  # whoever is gone answers no farewell
    except BaseException:
        _let_first_speak(world)
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _let_first_speak(world: World) -> None:
    """Torch's launchers end all processes as soon as one of them fails: let the first one say why."""
    assert world.store is not None
    if world.is_first:
        world.store.set(ENDED, "")
        return
    with suppress(LostProcessError):
        world.await_key(ENDED, FIRST_SPEAKS)
        time.sleep(FIRST_SPEAKS / 10)


@contextmanager
def lost_in_words() -> Iterator[None]:
    """What torch says in the block of another process that has gone, as a `LostProcessError`."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        what = str(error).strip().splitlines()[0]
        raise LostProcessError(f"{GONE} ({what})") from error
