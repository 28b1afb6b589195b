"""What this machine can do: accelerator, precision, peak rate."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from growlm.config.schema import TrainerConfig
from growlm.device import multiplies_bf16, pick_accelerator, torch_device
from growlm.training.memory import memory_limit

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


CPU_WORDS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
"""How the lines of /proc/cpuinfo begin that tell a kind of processor, on x86 and on ARM."""


@dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    accelerator: str
    """`cpu` or `gpu`."""
    precision: str
    """`bf16-mixed`, `32-true` or `64-true`."""
    memory: int
    """Bytes that the run may take, on each device."""

    @property
    def half_precision(self) -> bool:
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


def find_machine(settings: TrainerConfig, processes: int = 1) -> Machine:
    """What the settings choose of this machine.

    Args:
        settings: The choice.
        processes: Of the run on this machine, which share a CPU's memory.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    accelerator = pick_accelerator(settings.accelerator, "trainer.accelerator")
    memory = memory_limit(settings, accelerator)
    if accelerator == "cpu" and settings.memory_gb is None:
        memory //= processes
    return Machine(accelerator, choose_precision(settings, accelerator), memory)


def choose_precision(settings: TrainerConfig, accelerator: str) -> str:
    """The setting, or for `auto` bf16-mixed where the processor multiplies bf16."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if multiplies_bf16(accelerator) else "32-true"


def processor(machine: Machine) -> str:
    """What computes, in all the words that the system has for it."""
    if machine.accelerator == "gpu":
        cudnn = torch.backends.cudnn.version()
        return f"{torch.cuda.get_device_name()} CUDA {torch.version.cuda} cuDNN {cudnn}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_cpu_model()} {capability} {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        if sys.platform == "darwin":  # where `platform.processor` is `arm` for all of them
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return " ".join(line for line in first if line.startswith(CPU_WORDS))
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()


def peak_flops(machine: Machine) -> float | None:
    """Multiply-adds per second, times two, that matrix products can reach; None where it is not known.

    A GPU's is looked up. A CPU's is measured: the best of a few square products, some 50 ms in all.
    """
    if machine.accelerator == "gpu":
        if not machine.half_precision:
            return None
        name = torch.cuda.get_device_name()
        return next(
            (peak for part, peak in DENSE_PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)),
            None,
        )
    dtype = torch.bfloat16 if machine.half_precision else machine.weight_dtype
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
