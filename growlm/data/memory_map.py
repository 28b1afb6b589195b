"""Memory-mapped arrays, whose pages are read on demand and can be released again."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file


def map_array(path: Path, dtype: np.dtype[Any], key: str = "data.cache") -> np.ndarray:
    """Memory-map a file as a read-only array, (num_values,).

    Raises:
        UserError: If the file cannot be read, or its size is not a multiple of the dtype's.
        OSError: If it cannot be mapped.
    """
    with open_input_file(path, key, path.parent) as file:
        size = os.fstat(file.fileno()).st_size
        if size % dtype.itemsize:
            raise UserError(
                key, path, f"is {size:,} bytes, which is not a whole number of {dtype.name} values"
            )
        if size == 0:  # nothing to map
            return np.zeros(0, dtype)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def release_pages(array: np.ndarray) -> None:
    """Release the pages of a mapped array from this process's resident memory; later accesses read them again.

    The system could reclaim these pages at any time, but the resident memory that a run reports, and that limits
    are set on, includes them.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
