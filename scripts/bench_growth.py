"""Measure how fast every operator writes a grown model, compared with copying the result.

    python scripts/bench_growth.py                 (about 3 minutes on two cores)
    python scripts/bench_growth.py --json FILE --rounds 7

Both write to new memory, in turns within one process; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen
from growlm.growth.grow_model import Operator, apply_growth, build_growth_map
from growlm.growth.growth_rng import GrowthRng
from growlm.model import ModelConfig, TransformerLM
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.memory import release_memory

AIM = 0.4
DENSE = ModelConfig(
    vocab_size=8192, d_model=832, n_layers=4, n_heads=13, n_kv_heads=13, head_dim=64, d_ff=3328
)
MIXTURE = replace(DENSE, n_layers=2, num_experts=8)
CASES: dict[str, tuple[ModelConfig, Sequence[Operator]]] = {
    "upcycle": (DENSE, [Upcycle()]),
    "upcycle, finer experts": (DENSE, [Upcycle(granularity=2)]),
    "upcycle, units redrawn": (DENSE, [Upcycle(drop_fraction=0.5)]),
    "widen x2": (DENSE, [Widen(scale_factor=2.0, noise_std=0.0)]),
    "widen x2, noise": (DENSE, [Widen(scale_factor=2.0, noise_std=1e-2)]),
    "widen x20/13, noise": (DENSE, [Widen(scale_factor=20 / 13, noise_std=1e-2)]),
    "widen x2, split 1:2, noise": (
        DENSE, [Widen(scale_factor=2.0, noise_std=1e-2, split="1:2")]
    ),
    # One layer: with two, the time the system takes to provide 3 GB of new memory would hide everything else.
    "widen a mixture x2, noise": (
        replace(MIXTURE, n_layers=1), [Widen(scale_factor=2.0, noise_std=1e-2)]
    ),
    "widen x2, fresh": (DENSE, [Widen(scale_factor=2.0, new_channels="fresh")]),
    "deepen, fresh": (DENSE, [Deepen(extra_layers=4, init="fresh")]),
    "deepen, identity": (DENSE, [Deepen(extra_layers=4, init="identity")]),
    "deepen, plain copies": (DENSE, [Deepen(extra_layers=4, placement="stack", init="copy")]),
    "multiply experts": (MIXTURE, [MultiplyExperts(factor=2)]),
    "widen x2 and deepen": (
        DENSE, [Widen(scale_factor=2.0, noise_std=1e-2), Deepen(extra_layers=4, init="identity")]
    ),
}  # fmt: skip


def time_call(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes; its result is freed afterwards."""
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    del result
    release_memory()
    return seconds


def main() -> None:
    """Measure every growth and print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    table = Table("growth", "parameters", "GB/s", "copy GB/s", "of a copy", "aim")
    results = {}
    for name, (config, operators) in CASES.items():
        console.print(f"{name} ...")
        old = TransformerLM(config)
        growth_map = build_growth_map(config, operators)
        new = apply_growth(old, growth_map, GrowthRng(0, 0))
        tensors = list(new.state_dict().values())
        size = sum(t.nbytes for t in tensors)
        sides: dict[str, Callable[[], object]] = {
            "growth": lambda o=old, g=growth_map: apply_growth(o, g, GrowthRng(0, 0)),
            "copy": lambda ts=tensors: [t.clone() for t in ts],
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(arguments.rounds):
            # The sides take turns to be first: after a pause the system provides memory slowly.
            for side in list(sides)[:: -1 if number % 2 else 1]:
                seconds[side].append(time_call(sides[side]))
        rates = {side: size / statistics.median(s) for side, s in seconds.items()}
        share = rates["growth"] / rates["copy"]
        results[name] = {"share": share, "bytes": size, "seconds": seconds}
        table.add_row(
            name, f"{size / 4e6:,.0f} M", f"{rates['growth'] / 1e9:.2f}", f"{rates['copy'] / 1e9:.2f}",
            f"{share:.2f}", f"{AIM}",
        )  # fmt: skip
        del old, new, tensors, sides
        release_memory()
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_main_and_exit(main)
