"""Turn errors into messages and exit codes; imports nothing heavy.

Exit codes: 0 success; 2 invalid settings or input; 128 + its number after a signal; 141 where nobody reads the
result any more; 1 anything else.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from growlm.runtime.errors import RunError, UserError
from growlm.runtime.escaping import escape_unprintable
from growlm.runtime.output_streams import OutputLostError, open_missing_streams, protect_streams

RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
PEER_ERROR_DELAY_S = 3.0
"""Seconds that other ranks wait before they print an error that rank 0 may print too. torch's launchers end them
as soon as rank 0 has exited, so that the message appears once."""


def run_and_get_exit_code(
    body: Callable[[], int], on_error: Callable[[str], object] = lambda message: None
) -> int:
    """Run the body of a command; turn exceptions into a printed message and an exit code.

    Args:
        body: Function that runs the command and returns its exit code.
        on_error: Function that also receives the error message.
    """
    open_missing_streams()
    with protect_streams():
        try:
            return _run_and_translate(body, on_error)
        except OutputLostError as lost:
            on_error(str(lost))
            if lost.error.errno == errno.EPIPE:
                return 128 + signal.SIGPIPE  # as a program that does not handle the signal
            print_error(f"stopped: the output cannot be written: {lost}")
            return 1


def _run_and_translate(body: Callable[[], int], on_error: Callable[[str], object]) -> int:
    try:
        check_platform()
        exit_code = body()
        sys.stdout.flush()
        return exit_code
    except OutputLostError:
        raise
    except UserError as error:
        on_error(str(error))
        return print_user_error(error)
    except RunError as error:
        on_error(str(error))
        if (code := getattr(error, "code", None)) is not None:
            return int(code)  # another process of the run has printed the reason
        where = "" if is_rank0_process() else f" (process {os.environ['RANK']})"
        print_error(f"stopped: {error}{where}")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            on_error(str(error))
            return print_user_error(UserError("path", error.filename, "the name is too long"))
        on_error(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def check_platform() -> None:
    """Reject Windows, which lacks the signals and file locks that runs rely on.

    Raises:
        UserError: On Windows.
    """
    if sys.platform == "win32":
        reason = "growlm runs on Linux and macOS; on Windows, run it inside WSL"
        raise UserError("platform", sys.platform, reason)


def check_rank_variables() -> None:
    """Check the variables by which `torchrun` tells a process its place.

    Raises:
        UserError: If one of them is not a number.
    """
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            reason = "must be a number, as torchrun sets it; unset it for a run of its own"
            raise UserError(name, value, reason)


def run_main_and_exit(main: Callable[[], object]) -> NoReturn:
    """Run a command's `main`, then end the process with its exit code.

    Args:
        main: Function that runs the command. An integer that it returns is the exit code, as if it had called
            `sys.exit`.
    """

    def body() -> int:
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return code if isinstance(code, int) else 0

    open_missing_streams()
    with protect_streams():
        exit_process(run_and_get_exit_code(body))


def exit_process(code: int) -> NoReturn:
    """Run the exit functions, then end the process without Python's finalization.

    The final garbage collection would take two seconds. In a distributed run, threads are not joined either:
    torch's communication threads (gloo's, after a pass under FSDP2) abort about one process in twelve during
    finalization, and a launcher then takes a finished run for a failed one.
    """
    if not is_distributed():
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, OutputLostError):
            stream.flush()
    os._exit(code)


def print_user_error(error: UserError) -> int:
    """Print the error as one line and return exit code 2."""
    where = ""
    if not is_rank0_process():
        if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
            return 2  # srun and mpirun end no process when one has failed: one message per machine
        time.sleep(PEER_ERROR_DELAY_S)
        where = f" (process {os.environ['RANK']})"
    print_error(f"error: {error}{where}")
    return 2


def print_error(text: str) -> None:
    """Print a line to standard error, with control characters escaped."""
    print(escape_unprintable(text), file=sys.stderr)


def is_rank0_process() -> bool:
    """Return whether this is rank 0 or the only process of the run."""
    return not is_distributed() or os.environ["RANK"] == "0"


def is_distributed() -> bool:
    """Return whether a launcher started this process as one of several (`adopt_launcher_variables`)."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def get_exit_code(error: BaseException) -> int:
    """Return the exit code of a command that failed with this error."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else 1
