"""Report a missing optional package and how to install it; imports nothing heavy."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error


def explain_missing_package(package: str, requirement: str) -> str | None:
    """Return a message that a package is missing and how to install it; None if it is installed.

    Args:
        package: Import name of the package.
        requirement: Argument of `pip install`.
    """
    try:
        if find_spec(package) is not None:
            return None
    except (ImportError, ValueError):
        pass  # a folder of that name, or an entry of sys.modules that is not a module
    return f"needs {package}, which is not installed: pip install {requirement}"


def require_package(package: str, requirement: str) -> None:
    """Exit a script with a one-line error and code 2 if a required package is missing.

    Args:
        package: Import name of the package.
        requirement: Argument of `pip install`.

    Raises:
        SystemExit: If the package is missing.
    """
    if (reason := explain_missing_package(package, requirement)) is not None:
        raise SystemExit(print_user_error(UserError("script", Path(sys.argv[0]).name, reason)))
