"""Report a missing optional package or compiler and how to get it; imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
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


def explain_missing_compiler(accelerator: str) -> str | None:
    """Return a message about what `torch.compile` lacks on this machine; None if nothing is missing.

    Args:
        accelerator: `cpu` (needs a C++ compiler and Python's headers) or `gpu` (needs triton).
    """
    if accelerator == "gpu":
        return explain_missing_package("triton", "triton")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return (
            f"needs a C++ compiler on a CPU, but {compiler} was not found (set CXX to use another)"
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"needs Python's headers on a CPU, but there is no Python.h in {headers}"
    return None


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
