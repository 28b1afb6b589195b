"""Find out before a run whether `torch.compile` can work here; imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from growlm.runtime.optional_packages import explain_missing_package


def explain_missing_compiler(accelerator: str) -> str | None:
    """Return why `torch.compile` cannot make kernels, in words; None if what it needs is there.

    Args:
        accelerator: `cpu`, where it needs a C++ compiler and Python's headers, or `gpu`, where it needs triton.
    """
    if accelerator == "gpu":
        return explain_missing_package("triton", "triton")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"needs a C++ compiler on a CPU, and there is no {compiler} (CXX names another)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"needs Python's headers on a CPU, and there is no Python.h in {headers}"
    return None
