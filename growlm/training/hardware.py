"""What this machine can do: precision, peak rate, memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import resource
import sys
import time
from pathlib import Path

import torch

from growlm.config.schema import TrainerConfig
from growlm.errors import UserError

DENSE_PEAK_FLOPS = {
    # Name contains -> dense bf16 tensor-core peak; NVIDIA's data sheets, halved where those count sparsity.
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def choose_accelerator(settings: TrainerConfig) -> str:
    """`cpu` or `gpu`.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    if settings.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator", "gpu", "this machine has no CUDA device; use cpu or auto"
        )
    return settings.accelerator


def choose_precision(settings: TrainerConfig, accelerator: str) -> str:
    """The setting, or for `auto` bf16-mixed where the processor multiplies bf16."""
    if settings.precision != "auto":
        return settings.precision
    if accelerator == "gpu":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        fast = bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return "bf16-mixed" if fast else "32-true"


def peak_flops(accelerator: str, precision: str) -> float | None:
    """Multiply-adds per second, times two, that matrix products can reach; None where it is not known.

    A GPU's is looked up. A CPU's is measured: the best of a few square products, some 50 ms in all.
    """
    if accelerator == "gpu":
        if precision != "bf16-mixed":
            return None
        name = torch.cuda.get_device_name()
        return next(
            (peak for part, peak in DENSE_PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)),
            None,
        )
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_limit(settings: TrainerConfig, accelerator: str) -> int:
    """Bytes that a run may take: the setting, or what is free."""
    if settings.memory_gb is not None:
        return round(settings.memory_gb * 1e9)
    return free_memory(accelerator)


def free_memory(accelerator: str) -> int:
    """Bytes that this process may still take: of the GPU, or of the machine and its control group."""
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    free = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        figures = [line for path in (limit, used) for line in _lines(path)[:1]]
        if len(figures) == 2 and all(figure.isdigit() for figure in figures):
            free.append(int(figures[0]) - int(figures[1]))
    return min(free, default=2**62)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def reset_peak_memory() -> None:
    """Start a new high-water mark of resident memory, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """The high-water mark of resident memory since the last reset (else since the process began)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def keep_freed_memory() -> None:
    """Let the C library keep what is freed: asking the system anew for every tensor costs page faults.

    For glibc, process-wide, up to the 32 MB that it allows; `release_memory` still gives everything back. Keeping
    larger tensors too was tried: a sixth more resident memory in the largest plan, half the speed of small models.
    """
    if sys.platform != "linux" or not platform.libc_ver()[0].startswith("glibc"):
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names and numbers of malloc.h."""


def release_memory() -> None:
    """Give back what nobody refers to any more, to the system too: the next model needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
