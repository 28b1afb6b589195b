"""The threads that grow tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_thread = threading.local()


class GrowthThreads:
    """As many threads as torch has, started when they are needed; `close` stops them."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function to every item, one thread per item; results keep the order.

        In one of these threads, do it there: threads that wait for each other would never end.
        """
        if hasattr(_thread, "is_worker"):
            return [function(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=_init_worker)
        return list(self._pool.map(function, items))

    def close(self) -> None:
        """Stop the threads; they are started again when needed.

        While they live, OpenMP counts more threads than cores and lets the threads that train sleep between
        any two operations: a training step takes up to twice as long.
        """
        if self._pool is None:
            return
        try:
            self._pool.shutdown(cancel_futures=True)
        finally:
            self._pool = None
            # The workers set it to 1 for themselves and for all threads that start after them.
            torch.set_num_threads(torch.get_num_threads())


def _init_worker() -> None:
    # One core per worker: by default each of them would start OpenMP threads for all cores.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _thread.is_worker = True
