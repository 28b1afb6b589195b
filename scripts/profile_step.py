"""Profile a training step, and measure what each of growlm's optimizations saves.

    python scripts/profile_step.py                         (every case; about 4 minutes on two cores)
    python scripts/profile_step.py dense-bf16 --rounds 9

The cases are those of bench_throughput.py. The first table is the profiler's time by kind of operation. The second
is the time of a step with each optimization switched off; every variant runs in its own process, in turns.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from turns import Step, Steps, take_turns  # isort: skip - imports growlm before torch

import torch
from bench_throughput import CASES, Side, make_training_step
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from growlm.model import loss
from growlm.model.layers import causal_attention, experts
from growlm.runtime.exit_codes import run_main_and_exit

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm"),
    "fused attention": ("_scaled_dot_product",),
    "casts and copies": ("copy_", "cat", "index_select", "index_copy_"),
    "activations, softmax": ("gelu", "silu", "softmax", "exp_"),
    "norms": ("layer_norm", "rms_norm", "rsqrt", "native_layer_norm"),
    "optimizer, clipping": ("_fused_adamw_", "linalg_vector_norm", "mul_"),
}
OPTIMIZATIONS = ("memory", "attention", "loss", "rows")
PROFILED = 5


@dataclass(frozen=True)
class Without:
    """The step of a case with one optimization switched off."""

    side: Side
    optimization: str | None = None

    def __call__(self) -> Step:
        """Switch the optimization off in this process, and return the step."""
        side = self.side
        match self.optimization:
            case "memory":  # freed memory goes back to the system
                side = replace(side, keeps_memory=False)
            case "attention":  # torch's fused kernel for every length
                causal_attention.MAX_MATMUL_ATTENTION_LENGTH = 0
            case "loss":  # smaller chunks, the softmax of each in one piece, rows not aligned
                loss.CHUNK_BYTES, loss.BLOCK_BYTES, loss.LOGITS_ROW_ALIGNMENT = 32 * 2**20, 2**40, 1
            case "rows":  # as many rows for each expert as it has tokens
                experts.CPU_MAX_ROW_MULTIPLE = 1
        return make_training_step(side)


def profile_kinds(side: Side) -> dict[str, float]:
    """Return the profiler's milliseconds per step for each kind of operation."""
    step = make_training_step(side)
    for _ in range(6):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            step()
    milliseconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((k for k, names in KINDS.items() if name.startswith(names)), "other")
        milliseconds[kind] += event.self_cpu_time_total / 1e3 / PROFILED
    return milliseconds


def main() -> None:
    """Measure the cases and print both tables; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", default=["dense-bf16", "dense-bf16-gpt2", "moe-bf16"], metavar="case"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    kinds = Table("ms a step", *[*KINDS, "other"])
    optimizations = Table("case", "without", "ms a step", "times as long")
    results = {}
    for name in arguments.cases:
        side = CASES[name].sides["growlm"]
        variants = {None: Without(side)} | {
            m: Without(side, m)
            for m in OPTIMIZATIONS
            if m != "rows" or (side.config.is_moe and side.bf16)
        }
        measured = take_turns(
            {str(m): Steps(variant) for m, variant in variants.items()}, arguments.rounds, 2
        )
        base = measured["None"].median
        for optimization, m in measured.items():
            what = "nothing: as it is" if optimization == "None" else optimization
            optimizations.add_row(name, what, f"{m.median * 1e3:,.0f}", f"{m.median / base:.2f}")
        milliseconds = profile_kinds(side)
        kinds.add_row(name, *(f"{milliseconds[kind]:,.0f}" for kind in [*KINDS, "other"]))
        results[name] = {
            "kinds": dict(milliseconds),
            "without": {variant: m.to_json() for variant, m in measured.items()},
        }
    console.print(kinds)
    console.print(optimizations)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    run_main_and_exit(main)
