"""Check before a run whether `torch.compile` can work on this machine; imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from growlm.runtime.optional_packages import explain_missing_package


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
