"""What a command prints and exits with when something is wrong; imports nothing heavy.

0 done; 2 what was asked for is wrong; 1 anything else; 130 or 143 after a signal.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from growlm.runtime.errors import RunError, UserError
from growlm.runtime.escaping import escape_unprintable

PEER_ERROR_DELAY_S = 3.0
"""Seconds that the other processes of a run wait before they say what the first one may be about to say; torch's
launchers end them as soon as it has."""


def run_and_get_exit_code(
    body: Callable[[], int], on_error: Callable[[str], object] = lambda message: None
) -> int:
    """Run the body of a command and turn what it raises into words and an exit code.

    Args:
        body: Returns the exit code.
        tell: Called with what went wrong, besides its being printed.
    """
    try:
        check_platform()
        return body()
    except UserError as error:
        on_error(str(error))
        return print_user_error(error)
    except RunError as error:
        on_error(str(error))
        if (code := getattr(error, "code", None)) is not None:
            return int(code)  # another process of the run has said why
        where = "" if is_rank0_process() else f" (process {os.environ['RANK']})"
        print_error(f"stopped: {error}{where}")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        on_error(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def check_platform() -> None:
    """Refuse Windows, which lacks the signals and file locks that runs rely on.

    Raises:
        UserError: On Windows.
    """
    if sys.platform == "win32":
        allowed = "growlm runs on Linux and macOS; on Windows, run it inside WSL"
        raise UserError("platform", sys.platform, allowed)


def run_main_and_exit(main: Callable[[], object]) -> NoReturn:
    """Run a command that exits by `sys.exit` as all that this process does, and end the process."""
    try:
        main()
    except SystemExit as ended:
        exit_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    exit_process(0)


def exit_process(code: int) -> NoReturn:
    """End the process when exit functions have run; Python does not take itself apart.

    Its last collection would walk all that the libraries hold, for two seconds. In a run of several processes,
    torch's threads that carry messages (gloo's, after a pass under FSDP2) abort one in a dozen that does, and a
    launcher takes a finished run for a failed one; so these are not waited for either.
    """
    if not is_distributed():
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def print_user_error(error: UserError) -> int:
    """Print a user's error; the exit code for it."""
    where = ""
    if not is_rank0_process():
        time.sleep(PEER_ERROR_DELAY_S)
        where = f" (process {os.environ['RANK']})"
    print_error(f"error: {error}{where}")
    return 2


def print_error(text: str) -> None:
    """Print a line, which may repeat what a file says, on standard error."""
    print(escape_unprintable(text), file=sys.stderr)


def is_rank0_process() -> bool:
    """Whether this is the process of its run that speaks for all."""
    return not is_distributed() or os.environ["RANK"] == "0"


def is_distributed() -> bool:
    """Whether this process was started as one of a run's, by `torchrun` or something like it."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def get_exit_code(error: BaseException) -> int:
    """What a command exits with because of an error."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else 1
