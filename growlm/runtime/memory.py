"""Measure memory (limit, current, peak) and control when freed memory returns to the system.

`/proc` is read directly: psutil knows neither a process's peak nor how to reset it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from growlm.runtime.errors import UserError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def memory_limit_bytes(memory_gb: float | None, accelerator: str) -> int:
    """Return the bytes that a run may use: the setting, or else all free memory.

    Args:
        memory_gb: Limit set by the user, in GB; None for all free memory.
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: If there is no limit and free memory is unknown.
    """
    if memory_gb is not None:
        return round(memory_gb * 1e9)
    free = free_memory_bytes(accelerator)
    if free is None:
        reason = "must be set: this system does not report how much memory it has"
        raise UserError("trainer.memory_gb", "null", reason)
    return free


def free_memory_bytes(accelerator: str) -> int | None:
    """Return the bytes that this process may still allocate, on the GPU or within the machine and its cgroup.

    If the system does not report free memory (macOS), return the machine's total; None if that is unknown too.
    """
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    free = []
    for line in _read_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        figures = [line for path in (limit, used) for line in _read_lines(path)[:1]]
        if len(figures) == 2 and all(figure.isdigit() for figure in figures):
            free.append(int(figures[0]) - int(figures[1]))
    return min(free) if free else _physical_memory_bytes()


def _physical_memory_bytes() -> int | None:
    try:
        pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return pages * page_size if min(pages, page_size) > 0 else None  # -1 if unknown


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is a failed allocation, by Python or torch, on any device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def resident_memory_bytes() -> int:
    """Return the resident memory of the process; with CUDA in use, the bytes of its tensors on the GPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated()
    return _read_status_bytes("VmRSS") or peak_memory_bytes()


def reset_peak_memory() -> None:
    """Reset the peak memory counter, if the system allows it."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Return the peak of `resident_memory_bytes` since the last reset, or since the process started.

    Return 0 if the system does not report it.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if peak := _read_status_bytes("VmHWM"):
        return peak
    if resource is None:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _read_status_bytes(name: str) -> int:
    """Return the bytes in a field of /proc/self/status; 0 if it is missing."""
    found = [line for line in _read_lines("/proc/self/status") if line.startswith(name)]
    return int(found[0].split()[1]) * 1024 if found else 0


class KeepFreedMemory(Callback):
    """A callback that lets the C library keep the memory a step frees for the next step.

    Requesting memory from the system for every tensor causes page faults, which can take as long as the
    arithmetic. The callback is active from the second step of a phase to the last. Weights and optimizer moments
    exist by then, in memory mappings of their own that return to the system one by one, so a boundary needs no
    extra memory. It has an effect with glibc only.
    """

    def __init__(self) -> None:
        self._is_keeping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give large tensors (1 MiB or more) memory mappings of their own from here on."""
        _mallopt(_M_MMAP_THRESHOLD, 2**20)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start keeping freed memory once the optimizer has created its state."""
        if not self._is_keeping and trainer.global_step:
            keep_freed_memory()
            self._is_keeping = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return free memory to the system, now and from here on."""
        stop_keeping_freed_memory()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Return free memory to the system: a sweep may continue with its next job."""
        self.on_train_end(trainer, pl_module)


def keep_freed_memory() -> None:
    """Allocate tensors of every size on the heap, which shrinks only in `release_memory`."""
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, _TRIM_NEVER)


def stop_keeping_freed_memory() -> None:
    """Return all free memory to the system, and from here on memory as it is freed."""
    _mallopt(_M_MMAP_MAX, _GLIBC_MMAP_MAX)
    _mallopt(_M_TRIM_THRESHOLD, _GLIBC_TRIM_THRESHOLD)
    release_memory()


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Limit garbage collection inside the block to objects created in it.

    Scanning the objects of all libraries takes a third of a second, and a run calls `release_memory` often. Where
    the caller has frozen objects, nothing is done, since `gc.unfreeze` would take theirs back, too.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Collect garbage and return free memory to the system, so that the next model can use it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _call_glibc("malloc_trim", 0)


def _mallopt(option: int, value: int) -> None:
    _call_glibc("mallopt", option, value)


def _call_glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc's allocator; do nothing with other C libraries (musl, macOS)."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Option numbers of `mallopt` in malloc.h."""
_TRIM_NEVER = -1
_GLIBC_TRIM_THRESHOLD, _GLIBC_MMAP_MAX = 2**17, 2**16
"""Default values of these options in glibc."""
