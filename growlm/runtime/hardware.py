"""Describe the machine a run computes on: accelerator, precision, memory, peak FLOPs."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from growlm.runtime.device import has_native_bf16, resolve_accelerator, torch_device
from growlm.runtime.memory import memory_limit_bytes
from growlm.runtime.numeric_settings import read_numeric_settings

DENSE_PEAK_FLOPS = {
    # Part of the device name -> dense bf16 tensor-core peak from NVIDIA's data sheets, halved where those
    # assume sparsity.
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


CPUINFO_PREFIXES = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
"""Prefixes of the /proc/cpuinfo lines that identify a processor model, on x86 and ARM."""
INSTRUCTION_SET_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
"""Environment variables that choose the instruction set of torch's libraries, which changes the last bits of sums.
`describe_processor` shows these; `fingerprint_processor` uses all that `read_numeric_settings` returns."""


class HardwareSettings(Protocol):
    """The settings that choose a run's hardware; `TrainerConfig` satisfies this protocol."""

    @property
    def accelerator(self) -> str:
        """`auto`, `cpu` or `gpu`."""

    @property
    def precision(self) -> str:
        """`auto`, or one of `Machine.precision`."""

    @property
    def memory_gb(self) -> float | None:
        """Memory that the run may use, in GB; None for all free memory."""


@dataclass(frozen=True)
class Machine:
    """The accelerator, precision and memory of a run."""

    accelerator: str
    """`cpu` or `gpu`."""
    precision: str
    """`bf16-mixed`, `32-true` or `64-true`."""
    memory_bytes: int
    """Bytes that the run may use on each device."""

    @property
    def uses_half_precision(self) -> bool:
        """Whether matrix products run in bf16."""
        return self.precision == "bf16-mixed"

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of weights, gradients and moments, and of matrix products that do not run in bf16."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def device(self) -> torch.device:
        """The torch device that the run computes on."""
        return torch_device(self.accelerator)


def detect_machine(settings: HardwareSettings, num_local_processes: int = 1) -> Machine:
    """Return the accelerator, precision and memory that the settings select on this machine.

    Args:
        settings: Accelerator, precision and memory limit of the run.
        num_local_processes: Number of processes of the run on this machine, which share a CPU's memory.

    Raises:
        UserError: If a GPU is requested and there is none.
    """
    accelerator = resolve_accelerator(settings.accelerator, "trainer.accelerator")
    memory = memory_limit_bytes(settings.memory_gb, accelerator)
    if accelerator == "cpu" and settings.memory_gb is None:
        memory //= num_local_processes
    return Machine(accelerator, resolve_precision(settings, accelerator), memory)


def resolve_precision(settings: HardwareSettings, accelerator: str) -> str:
    """Return the precision; `auto` becomes bf16-mixed with native bf16 support, else 32-true."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if has_native_bf16(accelerator) else "32-true"


def fingerprint_processor(machine: Machine) -> str:
    """Return a full text description of the processor; equal texts mean bit-identical results.

    A GPU run includes the CPU too, since initial weights and noise are drawn there.
    """
    words = [f"{name}={value}" for name, value in read_numeric_settings().items()]
    if machine.accelerator == "gpu":
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        words += [torch.cuda.get_device_name(), f"{found.multi_processor_count} multiprocessors"]
        words += [f"CUDA {torch.version.cuda} cuDNN {torch.backends.cudnn.version()}"]
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        first = []
    words += [line for line in first if line.startswith(CPUINFO_PREFIXES)]
    return "\n".join([*words, describe_processor(replace(machine, accelerator="cpu"))])


def describe_processor(machine: Machine) -> str:
    """Return a short description of a run's GPU or CPU: `AMD EPYC, AVX512 with avx512_bf16, 2 threads`."""
    if machine.accelerator == "gpu":
        return torch.cuda.get_device_name()
    features = torch.cpu.get_capabilities()
    halves = sorted(name for name, has in features.items() if has and name.endswith("bf16"))
    threads = torch.get_num_threads()
    parts = [
        features.get("cpu_name") or platform.processor() or platform.machine(),
        " with ".join([torch.backends.cpu.get_cpu_capability(), *halves]),
        f"{threads} thread{'s' if threads > 1 else ''}",
        *(f"{name}={os.environ[name]}" for name in INSTRUCTION_SET_VARIABLES if name in os.environ),
    ]
    return ", ".join(map(str, parts))


def get_peak_flops(machine: Machine) -> float | None:
    """Return the peak FLOPs per second of matrix products (2 per multiply-add); None if unknown.

    A GPU's peak is looked up. A CPU's is measured: the best of a few square products, about 50 ms in all.
    """
    if machine.accelerator == "gpu":
        if not machine.uses_half_precision:
            return None
        name = torch.cuda.get_device_name()
        return next(
            (peak for part, peak in DENSE_PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)),
            None,
        )
    dtype = torch.bfloat16 if machine.uses_half_precision else machine.weight_dtype
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
