"""Stopping a run from outside: signals, and a limit of time."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

REQUEUE: signal.Signals | None = getattr(signal, "SIGUSR2", None)
"""What submitit sends before a job's time is up; None on systems without it (Windows)."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143} | ({} if REQUEUE is None else {REQUEUE: 140})


class Interrupted(Exception):  # noqa: N818 - no error
    """The run was asked to stop, and can go on later.

    Args:
        code: The exit code: 130 after SIGINT, 143 after SIGTERM, 140 after SIGUSR2, 0 after `trainer.max_time`.
        where: What was being done, in words.
    """

    def __init__(self, code: int, where: str = "") -> None:
        self.code = code
        reasons = {code: number.name for number, code in EXIT_CODES.items()}
        self.reason = reasons.get(code, "trainer.max_time")
        super().__init__(f"stopped by {self.reason}" + (f" {where}" if where else ""))


class StopRequests:
    """Within its block, signals stop the run where nothing is lost.

    While `deferring`, what is under way is finished first: a step, or the end of a phase and its state. Where all
    that is being done can be done again, the run stops at once, as it does on a second SIGINT.

    SIGUSR2 is for whoever has a handler for it: submitit, which queues a job again before its time is up. That
    handler is called at the end of the block, when the state is written.

    Args:
        max_time: `DD:HH:MM:SS` from now; None for no limit.
    """

    def __init__(self, max_time: str | None) -> None:
        self.deferring = False
        self.code: int | None = None
        self._deadline = time.monotonic() + seconds_of(max_time) if max_time else float("inf")
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.getsignal(number) for number in EXIT_CODES}
        if REQUEUE is not None and not callable(self._before[REQUEUE]):
            del self._before[REQUEUE]
        self.take_signals()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _set_handler(number, handler)
        if REQUEUE is not None and self.code == EXIT_CODES[REQUEUE]:
            os.kill(os.getpid(), REQUEUE)

    def take_signals(self) -> None:
        """Again: Lightning puts a handler of its own in front of them when it begins to train."""
        for number in self._before:
            _set_handler(number, self._handle)

    @property
    def asked(self) -> int | None:
        """The exit code to stop with as soon as possible; None to go on."""
        if self.code is None and time.monotonic() >= self._deadline:
            self.code = 0
        return self.code

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        again = number == signal.SIGINT and self.code is not None
        self.code = code
        if again or not self.deferring:
            raise Interrupted(code)


def seconds_of(max_time: str) -> float:
    """Seconds of `DD:HH:MM:SS`.

    Raises:
        ValueError: If it is not of that form.
    """
    days, hours, minutes, seconds = (int(part) for part in max_time.split(":"))
    if min(days, hours, minutes, seconds) < 0:
        raise ValueError(max_time)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _set_handler(number: signal.Signals, handler: signal._HANDLER) -> None:
    try:
        signal.signal(number, handler)
    except ValueError:
        return  # not the main thread: whoever runs us there handles signals
