"""How fast this machine is, measured once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch

from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.planner.meta_trace import PassWorkload, trace_pass
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine, fingerprint_processor
from growlm.runtime.memory import free_memory_bytes, keep_freed_memory, stop_keeping_freed_memory
from growlm.storage.input_files import read_json
from growlm.storage.typed_values import check_positive

ADAMW_MEMORY_PASSES = 7
"""Times that AdamW reads or writes every entry: the weight and two moments both, the gradient once."""
CLIP_MEMORY_PASSES = 3
"""Times that clipping reads or writes every gradient."""
OVERHEAD_BOUND_MODEL = ModelConfig(
    vocab_size=64, d_model=16, n_layers=8, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32
)
"""Its step is all calls."""
BANDWIDTH_BOUND_MODEL = ModelConfig(
    vocab_size=1024, d_model=192, n_layers=4, n_heads=6, n_kv_heads=6, head_dim=32, d_ff=768,
    num_experts=8,
)  # fmt: skip
"""Most of its step is moving bytes, and products too small to be fast."""
NUM_ROUNDS = 11
METHOD_VERSION = 2
"""Counts the ways of measuring, so that what another one found is not taken for this one's."""
Action = Callable[[], object]
Rate = Annotated[float, check_positive]


@dataclass(frozen=True)
class Calibration:
    """What a second of this machine holds."""

    half_flops: Rate
    """Of products in half precision, per second."""
    single_flops: Rate
    """Of products in fp32 (with `trainer.precision=64-true` in fp64), per second."""
    other_bytes: Rate
    """Read and written by everything that is no product, per second, in memory that is there."""
    fresh_bytes: Rate
    """Written to memory that the system has to find first, per second."""
    again_bytes: Rate
    """Written to memory that the process has had before and given back, per second."""
    adamw_entries: Rate
    """Parameters that AdamW steps, per second."""
    call: Rate
    """Seconds that an operation takes beside its work."""

    def split_among(self, num_processes: int) -> Calibration:
        """What each process has where several share the machine: the same calls, and its part of all else."""
        rates = {name: rate / num_processes for name, rate in asdict(self).items()}
        return Calibration(**rates | {"call": self.call})

    def pass_seconds(self, workload: PassWorkload) -> float:
        """Of a forward and backward pass."""
        return (
            workload.half_flops / self.half_flops
            + workload.single_flops / self.single_flops
            + workload.other_bytes / self.other_bytes
            + workload.num_calls * self.call
        )


def load_or_measure_calibration(
    machine: Machine, on_measure: Callable[[], None], force: bool = False
) -> Calibration:
    """How fast the machine is: as remembered, else measured, some seconds.

    Args:
        machine: The machine.
        tell: Called before measuring.
        anew: Measure in any case.
    """
    path = _cache_folder() / f"calibration-{_fingerprint(machine)}.json"
    if not force:
        with suppress(UserError):  # never measured, or written by another version
            found: Calibration = read_json(path, "calibration", path.parent, Calibration)
            return found
    on_measure()
    measured = measure_calibration(machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(measured), indent=2))
        unfinished.replace(path)
    except OSError:
        pass  # it is measured again next time
    return measured


def measure_calibration(machine: Machine) -> Calibration:
    """Measure, as training would find it: with freed memory kept."""
    size = 8192 if machine.accelerator == "gpu" else 1024
    product_flops, entries = 2 * size**3, 2**24
    keep_freed_memory()
    try:
        tiny, tiny_step = _training_pass_action(machine, OVERHEAD_BOUND_MODEL, 1, 16)
        small, small_step = _training_pass_action(machine, BANDWIDTH_BOUND_MODEL, 16, 128)
        actions = {
            "half": _matmul_action(machine, torch.bfloat16, size),
            "single": _matmul_action(machine, machine.weight_dtype, size),
            "adamw": _adamw_action(machine, entries),
            "tiny": tiny_step,
            "small": small_step,
        }
        seconds = _time_interleaved(machine, actions)
    finally:
        stop_keeping_freed_memory()
    half, single = product_flops / seconds["half"], product_flops / seconds["single"]
    call = seconds["tiny"] / tiny.num_calls
    products = small.half_flops / half + small.single_flops / single
    rest = max(seconds["small"] - products - small.num_calls * call, 0.25 * seconds["small"])
    fresh, again = _measure_memory_rates(machine)
    return Calibration(
        half,
        single,
        other_bytes=small.other_bytes / rest,
        fresh_bytes=fresh,
        again_bytes=again,
        adamw_entries=entries / seconds["adamw"],
        call=call,
    )


def _time_interleaved(machine: Machine, actions: Mapping[str, Action]) -> dict[str, float]:
    """The median seconds of each.

    In turns, since a machine that others share changes its speed within seconds, and what one action took is
    subtracted from what another did.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(1 + NUM_ROUNDS):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if machine.accelerator == "gpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}  # one warms up


def _matmul_action(machine: Machine, dtype: torch.dtype, size: int) -> Action:
    a = torch.ones(size, size, dtype=dtype, device=machine.device)
    return lambda: torch.mm(a, a)


def _adamw_action(machine: Machine, entries: int) -> Action:
    parameter = torch.zeros(
        entries, device=machine.device, dtype=machine.weight_dtype, requires_grad=True
    )
    parameter.grad = torch.ones_like(parameter)
    return torch.optim.AdamW([parameter], fused=True).step


def _measure_memory_rates(machine: Machine) -> tuple[float, float]:
    # Large, and each once: what was used a moment ago comes several times as fast as what has to be found first.
    free = free_memory_bytes(machine.accelerator) or machine.memory_bytes
    size = max(2**26, min(2**32, free // 6))

    def rate() -> float:
        start = time.perf_counter()
        torch.ones(size, dtype=torch.uint8, device=machine.device)
        if machine.accelerator == "gpu":
            torch.cuda.synchronize()
        return size / (time.perf_counter() - start)

    return rate(), rate()


def _training_pass_action(
    machine: Machine, shape: ModelConfig, batch: int, length: int
) -> tuple[PassWorkload, Action]:
    with machine.device:
        model = TransformerLM(shape).to(machine.weight_dtype)
        tokens = torch.zeros(batch, length + 1, dtype=torch.long)

    def step() -> None:
        with torch.autocast(
            machine.device.type, dtype=torch.bfloat16, enabled=machine.uses_half_precision
        ):
            loss = model.loss(tokens)
        loss.backward()
        model.zero_grad(set_to_none=True)

    double = machine.weight_dtype is torch.float64
    work = trace_pass(shape, batch, length, machine.uses_half_precision, fp64=double)
    return work, step


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growlm"


def _fingerprint(machine: Machine) -> str:
    """Of everything that the figures depend on."""
    node = "" if machine.accelerator == "gpu" else platform.node()
    text = f"{node} {fingerprint_processor(machine)} {machine.precision} {torch.__version__} {METHOD_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
