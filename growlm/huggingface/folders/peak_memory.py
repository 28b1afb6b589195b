"""Estimate the memory that growing a folder takes, from the sizes of its tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource
from growlm.growth.growth_map import GrowthMap

LATE_LIBRARIES = 90 * 10**6
"""Bytes of code and tables that torch loads with the first product or random number."""


def estimate_peak_memory(
    growth_map: GrowthMap, source: TensorSource, grown: TensorSource, written: Sequence[TensorInfo]
) -> int:
    """Return an upper estimate of the largest resident memory of this process, in bytes.

    A tensor is computed while the one before it is written. A changed one needs its source, itself and an
    intermediate result; one that stays as it is is mapped from its file.

    Args:
        growth_map: Growth of the model.
        source: Weights before the growth.
        grown: Weights after it, under growlm's names.
        written: Tensors that are written.
    """
    needed = 0
    for name, tensor_map in growth_map.tensors.items():
        read = 0 if tensor_map.source is None else source.info(tensor_map.source).nbytes
        made = 0 if tensor_map.keeps_weight else 2 * grown.info(name).nbytes
        needed = max(needed, read + made)
    before = max(grown.info(name).nbytes for name in grown.names)
    largest = max((info.nbytes for info in written), default=0)
    return _resident_bytes() + LATE_LIBRARIES + needed + max(before, largest)


def _resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
