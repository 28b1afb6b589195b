"""Measure the speed of this machine once, and cache the result on disk."""

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
"""How often AdamW reads or writes every parameter: the weight and two moments twice, the gradient once."""
CLIP_MEMORY_PASSES = 3
"""How often clipping reads or writes every gradient."""
OVERHEAD_BOUND_MODEL = ModelConfig(
    vocab_size=64, d_model=16, n_layers=8, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32
)
"""Model whose step time is dominated by the overhead of operations."""
BANDWIDTH_BOUND_MODEL = ModelConfig(
    vocab_size=1024, d_model=192, n_layers=4, n_heads=6, n_kv_heads=6, head_dim=32, d_ff=768,
    num_experts=8,
)  # fmt: skip
"""Model whose step time is dominated by memory traffic and small matrix products."""
MAX_ROUNDS, MIN_ROUNDS, MAX_TIMED_SECONDS = 11, 3, 3.0
"""Every action is timed this often at most, and this often at least where that takes longer than the seconds."""
MAX_MEMORY_PROBE_BYTES = 2**31
METHOD_VERSION = 2
"""Version of the measuring method, part of the cache key, so that older results are not reused."""
Action = Callable[[], object]
Rate = Annotated[float, check_positive]


@dataclass(frozen=True)
class Calibration:
    """Measured rates of a machine."""

    half_flops: Rate
    """FLOP/s of matrix products in half precision."""
    single_flops: Rate
    """FLOP/s of matrix products in fp32, or in fp64 with `trainer.precision=64-true`."""
    other_bytes: Rate
    """Bytes per second read and written by all other operations, in memory already allocated."""
    fresh_bytes: Rate
    """Bytes per second written to memory that the system has to find first."""
    again_bytes: Rate
    """Bytes per second written to memory that the process has held before and released."""
    adamw_entries: Rate
    """Parameters that AdamW updates per second."""
    call: Rate
    """Seconds of overhead per operation."""

    def split_among(self, num_processes: int) -> Calibration:
        """Return the rates of each of several processes on one machine: equal shares, the same overhead."""
        rates = {name: rate / num_processes for name, rate in asdict(self).items()}
        return Calibration(**rates | {"call": self.call})

    def pass_seconds(self, workload: PassWorkload) -> float:
        """Return the seconds of a forward and backward pass."""
        return (
            workload.half_flops / self.half_flops
            + workload.single_flops / self.single_flops
            + workload.other_bytes / self.other_bytes
            + workload.num_calls * self.call
        )


def load_or_measure_calibration(
    machine: Machine, on_measure: Callable[[], None], force: bool = False
) -> Calibration:
    """Return the machine's cached calibration; measure it, in some seconds, if there is none.

    Args:
        machine: Machine to measure.
        on_measure: Function called before measuring.
        force: Whether to measure even if a calibration is cached.
    """
    path = _cache_folder() / f"calibration-{_fingerprint(machine)}.json"
    if not force:
        with suppress(UserError):  # not cached, or written by another version
            found: Calibration = read_json(path, "calibration", path.parent, Calibration)
            return found
    on_measure()
    measured = measure_calibration(machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(measured), indent=2))
        partial.replace(path)
    except OSError:
        pass  # the cache is optional: the next run measures again
    return measured


def measure_calibration(machine: Machine) -> Calibration:
    """Measure the machine's rates as training sees them, with freed memory kept by the allocator."""
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
    """Return the median seconds of each action, measured in turns.

    The speed of a shared machine changes within seconds, and the times of some actions are subtracted from those
    of others, so all must be measured under the same conditions.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    begin = time.perf_counter()
    for done in range(1 + MAX_ROUNDS):
        if done > MIN_ROUNDS and time.perf_counter() - begin > MAX_TIMED_SECONDS:
            break
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if machine.accelerator == "gpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    # The first round is warm-up.
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


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
    # Large, and written once per rate: memory used a moment ago is several times as fast as new memory.
    free = free_memory_bytes(machine.accelerator) or machine.memory_bytes
    size = max(2**26, min(MAX_MEMORY_PROBE_BYTES, free // 6))

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
    workload = trace_pass(shape, batch, length, machine.uses_half_precision, fp64=double)
    return workload, step


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growlm"


def _fingerprint(machine: Machine) -> str:
    """Return a digest of everything that the rates depend on."""
    node = "" if machine.accelerator == "gpu" else platform.node()
    text = f"{node} {fingerprint_processor(machine)} {machine.precision} {torch.__version__} {METHOD_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
