"""Say in one line which optional package is missing and how to install it; imports nothing heavy."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import complain


def why_missing(package: str, install: str) -> str | None:
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
    return f"needs {package}, which is not installed: pip install {install}"


def exit_without(package: str, install: str) -> None:
    """End a script with one line and exit code 2 if a package that it needs is missing.

    Args:
        package: Name that it is imported by.
        install: What `pip install` needs to be given.

    Raises:
        SystemExit: If it is missing.
    """
    if (reason := why_missing(package, install)) is not None:
        raise SystemExit(complain(UserError("script", Path(sys.argv[0]).name, reason)))
