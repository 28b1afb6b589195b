"""Measure the memory and time of one growth in one process and in several (FSDP2).

    python scripts/bench_sharded_growth.py                (about 3 minutes on two cores, 6 GB)
    python scripts/bench_sharded_growth.py --processes 1 2 4 --json FILE

The growth covers the weights, the checks and the AdamW moments, in the order of a boundary in a run. Every process
is new and grows once. Peaks are those of the process with the highest one, above its memory after all imports;
they include the old model and its moments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.distributed.process_group import DistributedContext
from growlm.distributed.startup import init_distributed
from growlm.growth import Widen
from growlm.growth.grow_model import apply_growth, build_growth_map
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.optimizer_state import grow_optimizer_state
from growlm.model import ModelConfig, TransformerLM
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.memory import (
    KeepFreedMemory,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
    resident_memory_bytes,
)
from growlm.training.strategy import build_device_mesh
from growlm.verification import detailed_growth_check

AIM = 0.6
MIXTURE = ModelConfig(
    vocab_size=8192, d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=2048,
    num_experts=4, top_k=2,
)  # fmt: skip
CASES = {
    "mixture": MIXTURE,
    "dense, large vocabulary": replace(MIXTURE, vocab_size=50257, n_layers=20, num_experts=0),
}
WIDEN = Widen(scale_factor=2.0, noise_std=1e-2)


def grow_once(config: ModelConfig, dist_context: DistributedContext) -> dict[str, Any]:
    """Grow once, alone or with the other processes; return peaks in bytes and seconds by step."""
    from growlm.config.schema import TrainerConfig
    from growlm.model.fsdp import create_sharded_model

    KeepFreedMemory().setup(None, None, "fit")  # type: ignore[arg-type] # as a run does
    mesh = build_device_mesh(dist_context, TrainerConfig(strategy="fsdp"), "cpu")
    dist_context.barrier()
    release_memory()
    before = resident_memory_bytes()
    old = TransformerLM(config) if mesh is None else create_sharded_model(config, 0, mesh)
    states = {
        name: {
            "step": torch.tensor(1.0),
            "exp_avg": torch.full_like(parameter, 1e-3, requires_grad=False),
            "exp_avg_sq": torch.full_like(parameter, 1e-6, requires_grad=False),
        }
        for name, parameter in old.named_parameters()
    }
    figures: dict[str, Any] = {}

    def measure(step: str, action: Callable[[], Any]) -> Any:
        release_memory()
        dist_context.barrier()
        reset_peak_memory()
        start = time.perf_counter()
        result = action()
        dist_context.barrier()
        figures[step] = {
            "peak": peak_memory_bytes() - before,
            "seconds": time.perf_counter() - start,
        }
        return result

    growth_map = build_growth_map(config, [WIDEN])
    new = measure("weights", lambda: apply_growth(old, growth_map, GrowthRng(0, 1)))
    probe = torch.randint(config.vocab_size, (4, 128), generator=torch.Generator().manual_seed(0))
    report = measure(
        "checks",
        lambda: detailed_growth_check(
            old_model=old, new_model=new, probe=probe, device="cpu", growth_map=growth_map
        ),
    )
    old = None
    grown = measure("moments", lambda: grow_optimizer_state(growth_map, states, "carry"))
    figures["passed"] = bool(report)
    figures["held"] = resident_memory_bytes() - before
    figures["parameters"] = sum(p.numel() for p in new.parameters())
    assert len(grown) == len(list(new.parameters()))
    return figures


def run_child(case: str, out: Path) -> None:
    """Grow once in this process; rank 0 writes the figures of all processes."""
    with init_distributed("cpu", timedelta(minutes=10)) as dist_context:
        figures = dist_context.all_gather(grow_once(CASES[case], dist_context))
        if dist_context.is_rank0:
            out.write_text(json.dumps(figures))


def available_cores() -> int:
    """Return the number of cores that this process may use, or all cores if the system has no such limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(case: str, processes: int) -> list[dict[str, Any]]:
    """Start the processes and return the figures of each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)] if processes > 1 else []
        command = command if processes > 1 else [sys.executable]
        threads = max(1, available_cores() // processes)
        subprocess.run(
            [*command, __file__, "--child", case, str(out)],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        figures: list[dict[str, Any]] = json.loads(out.read_text())
        return figures


def highest_peak(figures: list[dict[str, Any]]) -> int:
    """Return the highest peak of all steps and processes, in bytes."""
    return max(each[step]["peak"] for each in figures for step in ("weights", "checks", "moments"))


def main() -> None:
    """Measure the cases and print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child[0], Path(arguments.child[1]))
        return
    table = Table("widened ×2", "parameters", "processes", "peak: weights", "checks", "moments",
                  "of one process's", "seconds")  # fmt: skip
    results: dict[str, Any] = {}
    for case in arguments.cases:
        results[case] = {}
        for processes in arguments.processes:
            figures = run(case, processes)
            results[case][processes] = figures
            one = results[case].get(1)
            share = f"{highest_peak(figures) / highest_peak(one):.2f}" if one else ""
            steps = ("weights", "checks", "moments")
            peaks = [max(each[step]["peak"] for each in figures) for step in steps]
            seconds = [f"{figures[0][step]['seconds']:.1f}" for step in steps]
            table.add_row(
                case, f"{figures[0]['parameters'] / 1e6:,.0f} M", str(processes),
                *(f"{peak / 1e9:.2f} GB" for peak in peaks),
                share + (f" (aim {AIM})" if processes == 2 else ""), " + ".join(seconds),
            )  # fmt: skip
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
