"""Compare the planner's estimates of memory and time with measurements, for every phase of several plans.

    python scripts/bench_memory.py                         (about 12 minutes on two cores; up to 20 GB)
    python scripts/bench_memory.py quickstart wide         (these plans)
    python scripts/bench_memory.py --json FILE

Every plan runs in its own process. Memory is resident memory above that at the start of the first phase.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from rich.console import Console
from rich.table import Table

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.config import load_config
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_bytes, format_seconds
from growlm.training import run_plan


def _steps(*phases: str, steps: int) -> tuple[str, ...]:
    return tuple(f"phases.{phase}.steps={steps}" for phase in phases)


PLANS: dict[str, tuple[str, ...]] = {
    "quickstart": _steps("dense", "moe", "wide", "deep", steps=20),
    "wide": (
        "phase_plan=three_stage",
        "tokenizer=bytes",
        "phases.large_moe.grow.0.widen.scale_factor=1.25",
        *_steps("dense", "moe", "large_moe", steps=6),
    ),
    "checkpointing": (
        "phase_plan=dense",
        "model=dense_512",
        "trainer.activation_checkpointing=true",
        "trainer.keep_freed_memory=false",
        *_steps("dense", steps=6),
    ),
    "dense_512": ("phase_plan=dense", "model=dense_512", *_steps("dense", steps=6)),
    "8bit": (
        "phase_plan=dense",
        "model=dense_512",
        "optimizer=adamw_8bit",
        *_steps("dense", steps=6),
    ),
    "four_stage": ("phase_plan=four_stage", *_steps("dense", "moe", "medium_moe", "large_moe", steps=4)),
}  # fmt: skip


def run(connection: Connection, overrides: tuple[str, ...]) -> None:
    """Run one plan and send the planned and the measured figures of its phases."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(*overrides, f"run_dir='{folder}/run'", "callbacks.sample_tokens=0")
        result = run_plan(config)
        planned = json.loads((result.run_dir / "plan.json").read_text())
    boundaries = {b.to_phase: b.seconds for b in result.summary.boundaries}
    measured = [
        {
            "memory": phase.peak_memory_bytes - result.summary.initial_memory_bytes,
            "training": phase.tokens / phase.tokens_per_second,
            "growth": boundaries.get(phase.name, 0.0),
        }
        for phase in result.summary.phases
    ]
    connection.send([{"planned": p, "seen": s} for p, s in zip(planned, measured, strict=True)])


def main() -> None:
    """Run the plans and print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="*", default=list(PLANS), metavar="plan")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    table = Table(
        "plan", "phase", "memory planned", "seen", "ratio", "training planned", "seen", "ratio",
        "growth planned", "seen",
    )  # fmt: skip
    results: dict[str, Any] = {}
    for name in arguments.plans:
        receiver, sender = context.Pipe()
        process = context.Process(target=run, args=(sender, PLANS[name]))
        process.start()
        sender.close()
        results[name] = receiver.recv()
        process.join()
        for phase in results[name]:
            planned, measured = phase["planned"], phase["seen"]
            memory, training = planned["memory"]["peak"], planned["seconds"]["training"]
            table.add_row(
                name, planned["name"],
                format_bytes(memory), format_bytes(measured["memory"]), f"{memory / measured['memory']:.2f}",
                format_seconds(training), format_seconds(measured["training"]),
                f"{training / measured['training']:.2f}",
                format_seconds(planned["seconds"]["growth"]), format_seconds(measured["growth"]),
            )  # fmt: skip
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    Console(width=120).print(table)


if __name__ == "__main__":
    run_main_and_exit(main)
