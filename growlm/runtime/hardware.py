"""What this machine can do: accelerator, precision, peak rate."""

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


CPUINFO_PREFIXES = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
"""How the lines of /proc/cpuinfo begin that tell a kind of processor, on x86 and on ARM."""
INSTRUCTION_SET_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
"""Environment variables that choose the instructions of torch's libraries, and with them the last bits of sums.
People are told of these; a key has all that `numerics` finds."""


class HardwareSettings(Protocol):
    """The settings of a run that choose where it computes; `TrainerConfig` has them."""

    @property
    def accelerator(self) -> str:
        """`auto`, `cpu` or `gpu`."""

    @property
    def precision(self) -> str:
        """`auto`, or one of `Machine.precision`."""

    @property
    def memory_gb(self) -> float | None:
        """Memory that the run may take; None for what is free."""


@dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    accelerator: str
    """`cpu` or `gpu`."""
    precision: str
    """`bf16-mixed`, `32-true` or `64-true`."""
    memory_bytes: int
    """Bytes that the run may take, on each device."""

    @property
    def uses_half_precision(self) -> bool:
        """Whether products are in half precision."""
        return self.precision == "bf16-mixed"

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of weights, gradients and moments; of products too, where these are not in half precision."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def device(self) -> torch.device:
        """The first device of its kind."""
        return torch_device(self.accelerator)


def detect_machine(settings: HardwareSettings, num_local_processes: int = 1) -> Machine:
    """What the settings choose of this machine.

    Args:
        settings: The choice.
        processes: Of the run on this machine, which share a CPU's memory.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    accelerator = resolve_accelerator(settings.accelerator, "trainer.accelerator")
    memory = memory_limit_bytes(settings.memory_gb, accelerator)
    if accelerator == "cpu" and settings.memory_gb is None:
        memory //= num_local_processes
    return Machine(accelerator, resolve_precision(settings, accelerator), memory)


def resolve_precision(settings: HardwareSettings, accelerator: str) -> str:
    """The setting, or for `auto` bf16-mixed where the processor multiplies bf16."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if has_native_bf16(accelerator) else "32-true"


def fingerprint_processor(machine: Machine) -> str:
    """Return what computes, in all the words that the system has for it: equal words, equal results to the bit.

    A GPU's run has the CPU's words too: initial weights and noise are drawn there.
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
    """Return what computes, in a few words for people: `AMD EPYC, AVX512 with avx512_bf16, 2 threads`."""
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
    """Multiply-adds per second, times two, that matrix products can reach; None where it is not known.

    A GPU's is looked up. A CPU's is measured: the best of a few square products, some 50 ms in all.
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
