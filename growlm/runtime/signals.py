"""Stop a run gracefully after a signal or a time limit."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

REQUEUE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR2", None)
"""Signal that submitit sends before a job's time limit; None on systems without it (Windows)."""
HANGUP_SIGNAL: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Signal that a process gets when its terminal goes away; None on Windows."""
SLURM_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)
"""Signal that Lightning's users ask SLURM for before a job's time limit; None on Windows."""
SIGNAL_EXIT_CODES: dict[signal.Signals, int] = {
    number: 128 + number
    for number in (signal.SIGINT, signal.SIGTERM, HANGUP_SIGNAL, SLURM_SIGNAL, REQUEUE_SIGNAL)
    if number is not None
}


class Interrupted(Exception):  # noqa: N818 - not an error
    """A requested stop of the run, which can be resumed later.

    Args:
        code: Exit code: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, 138 or 140 after SIGUSR1 or SIGUSR2
            (on Linux), 0 after `trainer.max_time`.
        during: What the run was doing, as the end of a sentence.
        reason: What asked for the stop; None for the signal, or `trainer.max_time`.
    """

    def __init__(self, code: int, during: str = "", reason: str | None = None) -> None:
        self.code = code
        reasons = {code: number.name for number, code in SIGNAL_EXIT_CODES.items()}
        self.reason = reason or reasons.get(code, "trainer.max_time")
        super().__init__(f"stopped by {self.reason}" + (f" {during}" if during else ""))


class GracefulStop:
    """Context manager that stops the run on signals without losing work.

    While `is_deferring`, the current work is finished first: a step, or the end of a phase and its resume state.
    Otherwise the work can be repeated and the run stops at once, as it does on a second SIGINT.

    SIGUSR2 is only handled if a handler exists: submitit's, which requeues a job before its time limit. That
    handler is called at the end of the block, when the resume state is written. SIGUSR1 is only handled in a SLURM
    job that has no handler of its own for it, SIGHUP unless it is ignored, as `nohup` has it.

    Args:
        max_time: Time limit from now as `DD:HH:MM:SS`; None for no limit.
    """

    def __init__(self, max_time: str | None) -> None:
        self.is_deferring = False
        self.exit_code: int | None = None
        self.reason: str | None = None
        """What asked for the stop, if it was neither a signal nor the time limit."""
        self._deadline = time.monotonic() + parse_max_time(max_time) if max_time else float("inf")
        self._previous_handlers: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> GracefulStop:
        self._previous_handlers = {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}
        for number in (REQUEUE_SIGNAL, SLURM_SIGNAL, HANGUP_SIGNAL):
            if number is not None and not _should_handle(number, self._previous_handlers[number]):
                del self._previous_handlers[number]
        self.install_handlers()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            _set_handler(number, handler)
        if REQUEUE_SIGNAL is not None and self.exit_code == SIGNAL_EXIT_CODES[REQUEUE_SIGNAL]:
            os.kill(os.getpid(), REQUEUE_SIGNAL)

    def install_handlers(self) -> None:
        """Install the signal handlers; repeat when training starts, because Lightning replaces them then."""
        for number in self._previous_handlers:
            _set_handler(number, self._handle)

    @property
    def requested_exit_code(self) -> int | None:
        """Exit code to stop with as soon as possible; None to continue."""
        if self.exit_code is None and time.monotonic() >= self._deadline:
            self.exit_code = 0
        return self.exit_code

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = SIGNAL_EXIT_CODES[signal.Signals(number)]
        again = number == signal.SIGINT and self.exit_code is not None
        self.exit_code = code
        if again or not self.is_deferring:
            raise Interrupted(code)


def parse_max_time(max_time: str) -> float:
    """Return the seconds in a `DD:HH:MM:SS` time limit.

    Raises:
        ValueError: If the text has another form.
    """
    days, hours, minutes, seconds = (int(part) for part in max_time.split(":"))
    if min(days, hours, minutes, seconds) < 0:
        raise ValueError(max_time)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def list_optional_stop_signals() -> list[signal.Signals]:
    """Return which of SIGHUP and SIGUSR1 stop a run here: SIGHUP unless ignored, SIGUSR1 in a SLURM job."""
    return [
        number
        for number in (HANGUP_SIGNAL, SLURM_SIGNAL)
        if number is not None and _should_handle(number, signal.getsignal(number))
    ]


def _should_handle(number: signal.Signals, handler: signal._HANDLER) -> bool:
    """Return whether a signal with this handler so far stops the run."""
    if number == REQUEUE_SIGNAL:
        return callable(handler)
    if number == SLURM_SIGNAL:
        return handler == signal.SIG_DFL and "SLURM_JOB_ID" in os.environ
    return handler != signal.SIG_IGN


def _set_handler(number: signal.Signals, handler: signal._HANDLER) -> None:
    try:
        signal.signal(number, handler)
    except ValueError:
        return  # not the main thread: the calling program handles signals
