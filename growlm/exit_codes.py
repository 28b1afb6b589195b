"""What a command prints and exits with when something is wrong; imports nothing heavy.

0 done; 2 what was asked for is wrong; 1 anything else; 130 or 143 after a signal.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from growlm.errors import RunError, UserError


def exit_code_of(
    body: Callable[[], int], tell: Callable[[str], object] = lambda message: None
) -> int:
    """Run the body of a command and turn what it raises into words and an exit code.

    Args:
        body: Returns the exit code.
        tell: Called with what went wrong, besides its being printed.
    """
    try:
        return body()
    except UserError as error:
        tell(str(error))
        return complain(error)
    except RunError as error:
        tell(str(error))
        if (code := getattr(error, "code", None)) is not None:
            return int(code)  # another process of the run has said why
        where = "" if is_first_process() else f" (process {os.environ['RANK']})"
        print(f"stopped: {error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        tell(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def complain(error: UserError) -> int:
    """Print a user's error, if this is the first process of its run; the exit code for it."""
    if is_first_process():
        print(f"error: {error}", file=sys.stderr)
    return 2


def is_first_process() -> bool:
    """Whether this is the process of its run that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def code_of(error: BaseException) -> int:
    """What a command exits with because of an error."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else 1
