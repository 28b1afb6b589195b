"""Compare the update of `optimizer=adamw_8bit` with that of AdamW: the first, which compiles, and later ones.

    python scripts/bench_eight_bit.py              (half a minute; a minute the first time on a machine)
    python scripts/bench_eight_bit.py --json FILE

The parameter is one tensor of 16.8 million entries, like a stack of eight experts. Both optimizers run in turns;
the figures are medians over the rounds.
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
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.memory import resident_memory_bytes

SHAPE = (8, 2048, 1024)
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def time_call(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make_parameter() -> nn.Parameter:
    """Return a parameter with a gradient."""
    parameter = nn.Parameter(torch.randn(SHAPE))
    parameter.grad = torch.randn(SHAPE) * 1e-3
    return parameter


def main() -> None:
    """Measure both optimizers and print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parameters = {"adamw": make_parameter(), "adamw_8bit": make_parameter()}
    optimizers = {
        "adamw": torch.optim.AdamW([parameters["adamw"]], **SETTINGS, fused=True),
        "adamw_8bit": AdamW8bit([{"params": [parameters["adamw_8bit"]]}], **SETTINGS),
    }
    results: dict[str, dict[str, float]] = {}
    for name, optimizer in optimizers.items():
        before = resident_memory_bytes()
        first = time_call(optimizer.step)
        resident = resident_memory_bytes() - before
        state = sum(tensor.nbytes for tensor in optimizer.state[parameters[name]].values())
        results[name] = {
            "first_seconds": first,
            "state_bytes": state,
            "other_bytes": resident - state,
        }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(arguments.rounds):
        for name, optimizer in optimizers.items():
            times[name].append(time_call(optimizer.step))
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
    run_main_and_exit(main)
