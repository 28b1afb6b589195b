"""One update of `optimizer=adamw_8bit` beside AdamW's: the first, which compiles, and the others.

    python scripts/bench_eight_bit.py              (half a minute; the first time on a machine a minute)
    python scripts/bench_eight_bit.py --json FILE

One tensor of 16.8 million entries, as a stack of eight experts. Both take turns; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.optim.adamw_8bit import AdamW8bit
from growlm.runtime.memory import resident_memory_bytes

SHAPE = (8, 2048, 1024)
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def seconds(action: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def with_gradient() -> nn.Parameter:
    """A parameter that can be stepped."""
    parameter = nn.Parameter(torch.randn(SHAPE))
    parameter.grad = torch.randn(SHAPE) * 1e-3
    return parameter


def main() -> None:
    """Step, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parameters = {"adamw": with_gradient(), "adamw_8bit": with_gradient()}
    optimizers = {
        "adamw": torch.optim.AdamW([parameters["adamw"]], **SETTINGS, fused=True),
        "adamw_8bit": AdamW8bit([{"params": [parameters["adamw_8bit"]]}], **SETTINGS),
    }
    results: dict[str, dict[str, float]] = {}
    for name, optimizer in optimizers.items():
        before = resident_memory_bytes()
        first = seconds(optimizer.step)
        held = resident_memory_bytes() - before
        state = sum(tensor.nbytes for tensor in optimizer.state[parameters[name]].values())
        results[name] = {"first_seconds": first, "state_bytes": state, "other_bytes": held - state}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(arguments.rounds):
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer.step))
    table = Table(
        "optimizer", "first update", "others, a parameter", "state, a parameter", "else held"
    )
    entries = torch.Size(SHAPE).numel()
    for name, result in results.items():
        result["seconds"] = statistics.median(times[name])
        table.add_row(
            name,
            f"{result['first_seconds']:.1f} s",
            f"{result['seconds'] / entries * 1e9:.1f} ns",
            f"{result['state_bytes'] / entries:.2f} bytes",
            f"{result['other_bytes'] / 1e6:.0f} MB",
        )
    Console().print(f"{torch.get_num_threads()} threads", table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
