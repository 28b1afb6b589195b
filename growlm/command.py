"""What all commands share: free text before Hydra parses it, errors in words, exit codes.

0 done; 2 what was asked for is wrong; 1 anything else; 130 or 143 after a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from growlm.config.load import explain
from growlm.errors import RunError, UserError

FREE_TEXT = (
    "callbacks.sample_prompt",
    "checkpoint",
    "data.path",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "new",
    "old",
    "out",
    "resume",
    "run_dir",
)
"""Keys whose value is taken literally: commas, colons and apostrophes are ordinary text there."""


def quote_free_text(argument: str) -> str:
    """`data.path=a, b.txt` -> `data.path='a, b.txt'`; everything else as it is."""
    key, equals, value = argument.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key not in FREE_TEXT or not equals or is_quoted or value in ("", "null") or "${" in value:
        return argument
    escaped = value.replace("\\", "\\\\") if value.endswith("\\") else value
    escaped = escaped.replace("'", "\\'")
    return f"{key}='{escaped}'"


def run_command(
    body: Callable[[], int], tell: Callable[[str], object] = lambda message: None
) -> int:
    """Run the body of a command and turn what it raises into words and an exit code.

    Args:
        body: Returns the exit code.
        tell: Called with what went wrong, besides its being printed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting with 1
    try:
        return body()
    except UserError as error:
        tell(str(error))
        return complain(error)
    except (HydraException, OmegaConfBaseException) as error:
        tell(str(explain(error)))
        return complain(explain(error))
    except RunError as error:
        tell(str(error))
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        tell(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def run_small_command(usage: str, body: Callable[[list[str]], int]) -> int:
    """A command that takes `key=value` arguments and no sweeps.

    Args:
        usage: Printed for `--help`.
        body: Takes the arguments, free text quoted; returns the exit code.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage.strip())
        return 0
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            return complain(UserError("argument", argument, "must be key=value; see --help"))
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exception, so that files are cleaned up
    return run_command(lambda: body([quote_free_text(argument) for argument in arguments]))


def complain(error: UserError) -> int:
    """Print a user's error; the exit code for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2
