"""What a command prints and exits with when something is wrong; imports nothing heavy.

0 done; 2 what was asked for is wrong; 1 anything else; 130 or 143 after a signal.
"""

from __future__ import annotations

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
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        tell(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


def complain(error: UserError) -> int:
    """Print a user's error; the exit code for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2
