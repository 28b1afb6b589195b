"""Say in one line which optional package is missing and how to install it; imports nothing heavy."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error


def explain_missing_package(package: str, requirement: str) -> str | None:
    """Return why a package cannot be used, in words; None if it is installed.

    Args:
        package: Name that it is imported by.
        install: What `pip install` needs to be given.
    """
    try:
        if find_spec(package) is not None:
            return None
    except (ImportError, ValueError):
        pass  # a folder of its name, or an entry of sys.modules that is no module
    return f"needs {package}, which is not installed: pip install {requirement}"


def require_package(package: str, requirement: str) -> None:
    """End a script with one line and exit code 2 if a package that it needs is missing.

    Args:
        package: Name that it is imported by.
        install: What `pip install` needs to be given.

    Raises:
        SystemExit: If it is missing.
    """
    if (reason := explain_missing_package(package, requirement)) is not None:
        raise SystemExit(print_user_error(UserError("script", Path(sys.argv[0]).name, reason)))
