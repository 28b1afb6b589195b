"""Arrays that lie in files: read page by page as they are asked for, and let go of the same way."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file


def map_array(path: Path, dtype: np.dtype[Any], key: str = "data.cache") -> np.ndarray:
    """A file's bytes as an array, (num_values,), read-only.

    Raises:
        UserError: If the file cannot be read, or does not hold whole values.
        OSError: If it cannot be mapped.
    """
    with open_input_file(path, key, path.parent) as file:
        size = os.fstat(file.fileno()).st_size
        if size % dtype.itemsize:
            raise UserError(key, path, f"is {size:,} bytes, no whole number of {dtype.name}")
        if size == 0:  # nothing to map
            return np.zeros(0, dtype)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def release_pages(array: np.ndarray) -> None:
    """Stop counting what was read of a mapped array as this process's memory; it is read again when asked for.

    Pages of a file cost nothing that the system could not have back, but the resident memory that a run reports,
    and that limits are set on, counts them.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
