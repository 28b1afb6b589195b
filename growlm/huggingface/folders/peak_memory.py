"""Estimate the memory that growing a folder takes, from the sizes of its tensors."""

from __future__ import annotations

import os
from pathlib import Path

from growlm.checkpoint.safetensors_io import PART_BYTES, TensorSource, find_stored_tensor
from growlm.growth.growth_map import GrowthMap

LATE_LIBRARIES = 40 * 10**6
"""Bytes of code and tables that torch loads with the first product or random number."""


def estimate_peak_memory(
    growth_map: GrowthMap, source: TensorSource, grown: TensorSource, target: TensorSource
) -> int:
    """Return an upper estimate of the largest resident memory of this process, in bytes.

    A tensor is computed while the one before it is written. A changed one needs its source, itself and an
    intermediate result; one that stays as it is is read in parts from its file, or put together from several and
    copied.

    Args:
        growth_map: Growth of the model.
        source: Weights before the growth.
        grown: Weights after it, under growlm's names.
        target: Weights as they are written.
    """
    largest = max(target.info(name).nbytes for name in target.names)
    needed = before = min(PART_BYTES, largest)
    for name, tensor_map in growth_map.tensors.items():
        if find_stored_tensor(grown, name) is None:
            read = 0 if tensor_map.source is None else source.info(tensor_map.source).nbytes
            size = grown.info(name).nbytes
            needed = max(needed, read + (size if tensor_map.keeps_weight else 2 * size))
            before = max(before, size)
    for name in target.names:
        if find_stored_tensor(target, name) is None:
            before = max(before, target.info(name).nbytes)
    return _resident_bytes() + LATE_LIBRARIES + needed + before


def _resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
