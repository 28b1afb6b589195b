"""Memory: how much there is, how much was taken, and what becomes of what is freed."""

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
    """Return the bytes that a run may take: the setting, or what is free.

    Raises:
        UserError: If neither is known.
    """
    if memory_gb is not None:
        return round(memory_gb * 1e9)
    free = free_memory_bytes(accelerator)
    if free is None:
        allowed = "must be set here: this system does not say how much memory it has"
        raise UserError("trainer.memory_gb", "null", allowed)
    return free


def free_memory_bytes(accelerator: str) -> int | None:
    """Return the bytes that this process may still take: of the GPU, or of the machine and its control group.

    Where the system does not tell what is free (macOS), all of the machine's memory; None where it does not tell
    that either.
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
    return pages * page_size if min(pages, page_size) > 0 else None  # -1 where it is not known


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of Python's or torch's, on any device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def resident_memory_bytes() -> int:
    """What the process holds now; on a GPU, what its tensors take there."""
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated()
    return _read_status_bytes("VmRSS") or peak_memory_bytes()


def reset_peak_memory() -> None:
    """Start a new high-water mark of memory, where the system allows it."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Return the high-water mark of `resident_memory_bytes` since the last reset (else since the process began).

    0 where the system does not tell.
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
    """A line of the kernel's account of this process; 0 where there is none."""
    found = [line for line in _read_lines("/proc/self/status") if line.startswith(name)]
    return int(found[0].split()[1]) * 1024 if found else 0


class KeepFreedMemory(Callback):
    """Lets the C library keep what a step frees for the next one.

    Asking the system anew for every tensor costs page faults, which can take as long as the arithmetic. Only from
    the second step of a phase to its last: weights and moments are there by then, lie in mappings of their own and
    go back to the system one by one, so that a boundary needs no more memory for it. For glibc only.
    """

    def __init__(self) -> None:
        self._is_keeping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on, large tensors have mappings of their own."""
        _mallopt(_M_MMAP_THRESHOLD, 2**20)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep, once the optimizer has made its state."""
        if not self._is_keeping and trainer.global_step:
            keep_freed_memory()
            self._is_keeping = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back, now and from now on."""
        stop_keeping_freed_memory()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Likewise: a sweep may go on."""
        self.on_train_end(trainer, pl_module)


def keep_freed_memory() -> None:
    """Take tensors of every size from the heap, which does not shrink but in `release_memory`."""
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, _TRIM_NEVER)


def stop_keeping_freed_memory() -> None:
    """Give everything back that is free, and from now on what gets free."""
    _mallopt(_M_MMAP_MAX, _GLIBC_MMAP_MAX)
    _mallopt(_M_TRIM_THRESHOLD, _GLIBC_TRIM_THRESHOLD)
    release_memory()


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Within its block, `release_memory` looks at what was made in it alone.

    Looking through all that the libraries hold takes a third of a second each time, and a run asks often.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Give back what nobody refers to any more, to the system too: the next model needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _call_glibc("malloc_trim", 0)


def _mallopt(option: int, value: int) -> None:
    _call_glibc("mallopt", option, value)


def _call_glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc's allocator; other C libraries (musl, macOS) have none, or another of that name."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Names and numbers of malloc.h."""
_TRIM_NEVER = -1
_GLIBC_TRIM_THRESHOLD, _GLIBC_MMAP_MAX = 2**17, 2**16
"""What they are until somebody sets them."""
